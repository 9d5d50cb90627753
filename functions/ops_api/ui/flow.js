/** The flow: seven stages from the source to the action, and what waits for a person. */
import {
  Age, Bar, Icon, Instant, Sparkline, Stale, State, Table, Text, Trouble, count, html, link, spoken, useEffect, useMemo,
  usePoll, useRef, useState, useStore, utc, visible,
} from "#kit";

export const title = "Flow";

const letters = (subscription) => link("letters", { subscription });
/** What a stage does, what its parts are, what waits in it, and where the failures of a part are listed. */
const STAGES = {
  source: { does: "asked for observations", of: "source", age: "last success" },
  store: { does: "stored as events", of: "topic" },
  outbox: { does: "published to queues", of: "subscription", waits: "to publish", failed: letters },
  queue: { does: "put into queues", of: "subscription", waits: "in queues", failed: letters },
  consumer: { does: "processed", of: "consumer", failed: letters },
  decision: {
    does: "decisions opened", of: "playbook", waits: "open", failed: () => link("decisions", { state: "abandoned" }),
  },
  action: { does: "executed", of: "action", waits: "released", failed: () => link("decisions", { state: "failed" }) },
};
const OLD_SECONDS = 300; // the limit of /health and of the alarm

const isBehind = ({ stage, backlog, oldest_age_seconds: oldest }) => stage !== "source" && backlog > 0
  && oldest > OLD_SECONDS;
function healthOf(stage) {
  const { backlog, failed_hour: failed, minutes, last_minute: now } = stage;
  if (failed > 0) return { tone: "bad", word: `${count(failed)} failed in 1 h` };
  if (isBehind(stage)) return { tone: "warn", word: "behind" };
  if (now > 0 || backlog > 0) return { tone: "good", word: "flowing" };
  return { tone: "idle", word: minutes.some((n) => n > 0) ? "idle" : "quiet" };
}

/** A rate: a second's where there is one, otherwise a minute's. */
function Rate({ lastMinute }) {
  const each = lastMinute / 60;
  const number = each < 1 ? count(lastMinute) : each < 10 ? each.toFixed(1) : count(Math.round(each));
  return html`<span class="rate"><b>${number}</b> ${each < 1 ? "/min" : "/s"}</span>`;
}

const dollars = (micros) => (!micros ? "$0" : micros < 10000 ? "< $0.01" : `$${(micros / 1e6).toFixed(2)}`);

function Stage({ stage, open, spending }) {
  const { waits, age = "oldest" } = STAGES[stage.stage] ?? {};
  const { tone, word } = healthOf(stage);
  const ages = stage.parts.map((part) => part.oldest_age_seconds).filter((one) => typeof one === "number");
  const oldest = stage.oldest_age_seconds ?? (ages.length ? Math.max(...ages) : null);
  return html`<li class=${`stage ${open ? "open" : ""}`}>
    <a href=${link("flow", { stage: open ? undefined : stage.stage })} aria-expanded=${open ? "true" : "false"}>
      <span class="name">${stage.stage}</span><${State} word=${word} tone=${tone} />
      <${Rate} lastMinute=${stage.last_minute} />
      <${Sparkline} values=${stage.minutes} label=${`${stage.stage}, the last hour`} />
      <span class="figures"><span>${waits ? html`<b>${count(stage.backlog)}</b> ${waits}` : "\u00a0"}</span>
        ${(oldest !== null || !spending) && html`<span>${oldest === null ? "\u00a0"
          : html`${age} <${Age} seconds=${oldest} />`}</span>`}
        ${spending && html`<span class="spent">agents <b>${dollars(spending.spent_micros)}</b> today</span>`}</span>
    </a></li>`;
}

/* One stage, opened. */

/** Loads the chart's module when a stage is opened for the first time. */
function useChart() {
  const [state, setState] = useState({});
  useEffect(() => {
    import("#views/chart").then((module) => setState({ module }), () => setState({ failed: true }));
  }, []);
  return state;
}

function Failures({ part, failed }) {
  if (part.failed_hour === 0) return html`<span class="muted">0</span>`;
  const number = count(part.failed_hour);
  return html`<span class="state bad"><${Icon} tone="bad" />
    ${failed ? html`<a href=${failed(part.name)}>${number}</a>` : number}</span>`;
}

function Parts({ stage }) {
  const { of, waits, age = "oldest", failed } = STAGES[stage.stage] ?? { of: "part" };
  const right = { align: "right", width: 96 };
  const hour = (part) => html`<${Sparkline} values=${part.minutes} label=${`${part.name}, the last hour`} />`;
  const columns = [
    { title: of, cell: (part) => html`<${Text}>${part.name}<//>` },
    { ...right, title: "a minute", cell: (part) => count(part.last_minute) },
    { title: "the last hour", width: 220, wide: true, cell: hour },
    waits && { ...right, title: waits, cell: (part) => count(part.backlog) },
    { ...right, title: age, cell: (part) => html`<${Age} seconds=${part.oldest_age_seconds} />` },
    { ...right, title: "failed in 1 h", cell: (part) => html`<${Failures} part=${part} failed=${failed} />` },
  ].filter(Boolean);
  const label = `${stage.stage}, by ${of}`;
  return html`<${Table} label=${label} rows=${stage.parts} keyOf=${({ name }) => name} columns=${columns} />`;
}

function Details({ stage, at }) {
  const does = STAGES[stage.stage]?.does ?? "";
  const inUtc = useStore(utc) === "1";
  const section = useRef();
  const chart = useChart();
  const data = useMemo(() => {
    const last = Math.floor(new Date(at).getTime() / 60000) * 60;
    return [stage.minutes.map((_, n) => last - 60 * (stage.minutes.length - n)), stage.minutes];
  }, [at, stage.stage]);
  useEffect(() => section.current.scrollIntoView({ block: "nearest" }), [stage.stage]);
  const minutes = data[0].map((instant, n) => ({ instant, n: data[1][n] })).reverse();
  return html`<section ref=${section} class="card details" aria-label=${`${stage.stage}, opened`}>
    <header><h2><span class="name">${stage.stage}</span> <span class="muted">${does}, a minute, for an hour</span></h2>
      <a class="button" data-close href=${link("flow")}>Close</a></header>
    ${chart.failed ? html`<p class="muted">The chart could not be loaded: reload the page, or read the table.</p>`
      : chart.module ? html`<${chart.module.Chart} key=${stage.stage} data=${data}
          label=${`${stage.stage}: ${does}, a minute; a table below says the same`} />`
      : html`<div class="chart"></div>`}
    ${stage.parts.length > 0 && html`<${Parts} stage=${stage} />`}
    ${chart.module && html`<details class="fold"><summary>The hour as a table</summary>
      <${Table} label="Minute by minute" rows=${minutes} keyOf=${({ instant }) => instant} columns=${[
        { title: inUtc ? "minute, UTC" : "minute", cell: ({ instant }) => chart.module.clock(instant, inUtc) },
        { title: does, align: "right", cell: ({ n }) => count(n) },
      ]} /></details>`}</section>`;
}

/* What needs a person, or is unusual. */

function Panel({ name, tone, number, none, href, children }) {
  const state = number > 0
    ? html`<span class=${`state ${tone}`}><${Icon} tone=${tone} />${count(number)}</span>`
    : html`<span class="state"><${Icon} tone="good" />${none}</span>`;
  return html`<section class=${`card panel ${number ? tone : ""}`} aria-label=${name}>
    <header><h2>${name}</h2>${state}<a class="all" href=${href}>Show<span class="hidden"> ${name}</span></a></header>
    ${number > 0 && html`<ul>${children}</ul>`}</section>`;
}

const MOST = 4;
function Rows({ items, href, row }) {
  const more = items.length - MOST;
  return html`${items.slice(0, MOST).map(row)}
    ${more > 0 && html`<li><a href=${href}>and ${count(more)} more</a></li>`}`;
}

const isPast = (at) => Date.parse(at) <= Date.now();
const clamped = (text) => text && html`<p class="clamp"><${Text}>${text}<//></p>`;
const breakerRow = (one) => html`<li key=${one.name}><strong><${Text}>${one.name}<//></strong>
  <span class="muted">${one.state.replaceAll("_", " ")}, <${Instant} at=${one.opened_at} />
    ${one.retry_at && (isPast(one.retry_at) ? ", the next run tries again"
    : html`, tries again <${Instant} at=${one.retry_at} />`)}</span>${clamped(one.last_error)}</li>`;
const letterRow = (one) => html`<li key=${one.id}><a href=${link("letters", { id: one.id })}>
    <strong><${Text}>${one.subscription ?? one.kind}<//></strong></a>${" "}
  <span class="muted"><${Instant} at=${one.dead_lettered_at} /></span>${clamped(one.reason)}</li>`;
const switchRow = (one) => html`<li key=${one.scope}><strong><${Text}>${one.scope}<//></strong>
  <span class="muted">by <${Text}>${one.by}<//>, <${Instant} at=${one.since} /></span>${clamped(one.reason)}</li>`;
const operationRow = (one) => html`<li key=${one.operation_id} class="operation">
  <a href=${link("operations", { id: one.operation_id })}>${visible(one.kind)}</a>
  <${State} word=${one.is_stalled ? "stalled" : one.state} />
  <${Bar} done=${one.done} total=${one.total} label=${`${one.kind}: done`} /></li>`;

const isStuck = (operation) => operation.state === "failed" || operation.is_stalled;

function Panels({ flow }) {
  const { approvals, oldest_approval_age_seconds: oldest, dead_letters: dead,
    oldest_dead_letter_age_seconds: deadFor } = flow.waiting;
  const newest = (flow.dead_letters ?? []).slice(0, 2); // an older API names none
  const [breakers, off, under] = [flow.open_breakers, flow.switches_off, flow.operations];
  return html`<div class="panels">
    <${Panel} name="Approvals" tone="warn" number=${approvals} none="none asked" href=${link("approvals")}>
      <li>${approvals === 1 ? "One action waits" : `${count(approvals)} actions wait`} for a person's answer,${" "}
        the oldest for ${spoken(oldest)}.</li><//>
    <${Panel} name="Dead letters" tone="bad" number=${dead} none="none" href=${link("letters")}>
      ${newest.map(letterRow)}
      ${dead > newest.length && html`<li>${dead === 1 ? "One message was"
        : `${count(dead)} messages were`} given up on${deadFor
        ? `, the oldest ${spoken(deadFor)} ago` : ""}.</li>`}<//>
    <${Panel} name="Operations" tone=${under.some(isStuck) ? "bad" : "wait"} number=${under.length}
      none="none under way" href=${link("operations")}><${Rows} items=${under} href=${link("operations")}
        row=${operationRow} /><//>
    <${Panel} name="Breakers" tone="bad" number=${breakers.length} none="all closed" href=${link("switches")}>
      <${Rows} items=${breakers} href=${link("switches")} row=${breakerRow} /><//>
    <${Panel} name="Switched off" tone="bad" number=${off.length} none="nothing" href=${link("switches")}>
      <${Rows} items=${off} href=${link("switches")} row=${switchRow} /><//></div>`;
}

/** One sentence: does it flow, and does somebody have to act? */
function Headline({ flow, poll }) {
  const numbered = (number, one, more) => number > 0 && `${count(number)} ${number === 1 ? one : more}`;
  const said = [
    [numbered(flow.open_breakers.length, "breaker open", "breakers open"), "bad", link("switches")],
    [numbered(flow.switches_off.length, "switch off", "switches off"), "bad", link("switches")],
    [numbered(flow.waiting.dead_letters, "dead letter", "dead letters"), "bad", link("letters")],
    [numbered(flow.operations.filter(isStuck).length, "operation stuck", "operations stuck"), "bad",
      link("operations")],
    ...flow.stages.filter(isBehind).map(({ stage }) => [`${stage} behind`, "warn", link("flow", { stage })]),
    [numbered(flow.waiting.approvals, "approval asked for", "approvals asked for"), "warn", link("approvals")],
  ].filter(([words]) => words);
  const tone = said.some((one) => one[1] === "bad") ? "bad" : said.length ? "warn" : "good";
  const isQuiet = flow.stages.every((one) => one.last_minute === 0);
  const sentence = said.length ? said.map(([words, , href], n) => html`${n > 0 && ", "}<a href=${href}>${words}</a>`)
    : isQuiet ? "All is well, and quiet" : "All is well";
  return html`<header class="headline"><p class="verdict"><${Icon} tone=${tone} /><strong>${sentence}</strong></p>
    <${Stale} poll=${poll} /></header>`;
}

export function View({ query }) {
  const poll = usePoll("flow", {}, { seconds: 2 });
  const flow = poll.data;
  if (!flow) {
    return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
      : html`<p class="first">Reading the flow …</p>`;
  }
  const opened = flow.stages.find((one) => one.stage === query.stage);
  return html`<${Headline} flow=${flow} poll=${poll} />
    <ol class="strip" aria-label="Stages">
      ${flow.stages.map((one) => html`<${Stage} key=${one.stage} stage=${one} open=${one === opened}
        spending=${one.stage === "decision" && flow.spending} />`)}</ol>
    ${opened && html`<${Details} stage=${opened} at=${flow.at} />`}
    <${Panels} flow=${flow} />`;
}
