/** The flow: seven stages from the source to the action, and what waits for a person. */
import {
  Age, Bar, Icon, Id, Instant, Sparkline, Stale, State, Table, Text, Trouble, count, html, link, spoken, theme, useEffect, usePoll, useRef,
  useState, useStore, utc, visible,
} from "#kit";

export const title = "Flow";

/** What a stage does, what its parts are, what waits in it, and where its failures are listed. */
const STAGES = {
  source: { does: "asked for observations", of: "source", age: "last success" },
  store: { does: "stored as events", of: "topic" },
  outbox: { does: "published to queues", of: "subscription", waits: "to publish", failed: (name) => link("letters", { subscription: name }) },
  queue: { does: "waiting for a consumer", of: "subscription", waits: "in queues" },
  consumer: { does: "processed", of: "consumer", failed: (name) => link("letters", { subscription: name }) },
  decision: { does: "decisions opened", of: "playbook", waits: "open", failed: () => link("decisions", { state: "abandoned" }) },
  action: { does: "executed", of: "action", waits: "released", failed: () => link("decisions", { state: "failed" }) },
};
const OLD_SECONDS = 300; // the limit of /health and of the alarm

function healthOf({ backlog, oldest_age_seconds: oldest, failed_hour: failed, minutes, last_minute: now, stage }) {
  if (failed > 0) return { tone: "bad", word: `${count(failed)} failed in 1 h` };
  if (stage !== "source" && backlog > 0 && oldest > OLD_SECONDS) return { tone: "warn", word: "waiting" };
  if (now > 0 || backlog > 0) return { tone: "good", word: "flowing" };
  return { tone: "idle", word: minutes.some((n) => n > 0) ? "idle" : "quiet" };
}
/** A rate as its number and unit: a second's where there is one, otherwise a minute's. */
function rateOf(lastMinute) {
  return lastMinute >= 60 ? [lastMinute < 600 ? (lastMinute / 60).toFixed(1) : count(Math.round(lastMinute / 60)), "/s"] : [count(lastMinute), "/min"];
}
function Rate({ of }) {
  const [number, unit] = rateOf(of);
  return html`<span class="rate"><b>${number}</b> ${unit}</span>`;
}

function Stage({ stage, open }) {
  const { waits, age = "oldest" } = STAGES[stage.stage] ?? {};
  const { tone, word } = healthOf(stage);
  const ages = stage.parts.map((part) => part.oldest_age_seconds).filter((one) => typeof one === "number");
  const oldest = stage.oldest_age_seconds ?? (ages.length ? Math.max(...ages) : null);
  return html`<li class=${`stage ${open ? "open" : ""}`}>
    <a href=${link("flow", { stage: open ? undefined : stage.stage })} aria-expanded=${open ? "true" : "false"}>
      <span class="name">${stage.stage}</span><${State} word=${word} tone=${tone} />
      <${Rate} of=${stage.last_minute} />
      <${Sparkline} values=${stage.minutes} label=${`${stage.stage}, the last hour`} tone=${stage.stage} />
      <span class="figures"><span>${waits ? html`<b>${count(stage.backlog)}</b> ${waits}` : "\u00a0"}</span>
        <span>${oldest === null ? "\u00a0" : html`${age} <${Age} seconds=${oldest} />`}</span></span>
    </a></li>`;
}

/** An hour of one stage, enlarged. uPlot is loaded when the first one is shown. */
function Chart({ minutes, at, label }) {
  const box = useRef();
  const plot = useRef();
  const [error, setError] = useState(null);
  const colours = useStore(theme);
  const inUtc = useStore(utc) === "1";
  const last = Math.floor(new Date(at).getTime() / 60000) * 60;
  const data = [minutes.map((_, n) => last - 60 * (minutes.length - n)), minutes];
  useEffect(() => {
    let gone = false;
    const sheet = new Promise((done, fail) => {
      const href = import.meta.resolve("#vendor/uplot.css");
      if (document.querySelector(`link[href="${href}"]`)) return done();
      document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: done, onerror: fail }));
      return undefined;
    });
    Promise.all([import("uplot"), sheet]).then(([{ default: UPlot }]) => {
      if (gone) return;
      const colour = (name) => {
        const probe = document.createElement("i"); // resolves light-dark() for the canvas
        probe.style.color = `var(${name})`;
        box.current.append(probe);
        const found = getComputedStyle(probe).color;
        probe.remove();
        return found;
      };
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
      plot.current = new UPlot({
        width: box.current.clientWidth, height: 200, legend: { show: false }, cursor: { y: false },
        tzDate: (seconds) => (inUtc ? UPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
        scales: { x: { range: (_, low, high) => [low - 30, high + 30] }, y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] } },
        axes: [{ ...axis, size: 28, values: (_, ticks) => ticks.map((one) => clock(one, inUtc)) }, { ...axis, size: 56, values: (_, ticks) => ticks.map((n) => (n % 1 ? "" : count(n))) }],
        series: [{}, { fill: colour("--wait"), width: 0, paths: UPlot.paths.bars({ size: [0.72, 40] }), points: { show: false } }],
      }, data, box.current);
    }).catch(setError);
    const onResize = () => plot.current?.setSize({ width: box.current.clientWidth, height: 200 });
    addEventListener("resize", onResize);
    return () => { gone = true; removeEventListener("resize", onResize); plot.current?.destroy(); plot.current = null; };
  }, [colours, inUtc]);
  useEffect(() => plot.current?.setData(data), [at, minutes]);
  return error ? html`<p class="muted">The chart could not be loaded: reload the page, or read the table.</p>`
    : html`<div class="chart" role="img" aria-label=${label} ref=${box}></div>`;
}
const clock = (seconds, inUtc) => {
  const date = new Date(seconds * 1000);
  const [h, m] = inUtc ? [date.getUTCHours(), date.getUTCMinutes()] : [date.getHours(), date.getMinutes()];
  return `${String(h).padStart(2, "0")}:${String(m).padStart(2, "0")}`;
};

function Details({ stage, at }) {
  const { does, of, waits, age = "oldest", failed } = STAGES[stage.stage] ?? { does: "", of: "part" };
  const inUtc = useStore(utc) === "1";
  const last = Math.floor(new Date(at).getTime() / 60000) * 60;
  const minutes = stage.minutes.map((n, k) => ({ at: last - 60 * (stage.minutes.length - k), n })).reverse();
  const number = (name, width) => ({ title: name, align: "right", width });
  const section = useRef();
  useEffect(() => section.current.scrollIntoView({ block: "nearest" }), [stage.stage]);
  return html`<section ref=${section} class="card details" aria-label=${`${stage.stage}, by ${of}`}>
    <header><h2><span class="name">${stage.stage}</span> <span class="muted">${does}, a minute, for an hour</span></h2>
      <a class="button" data-close href=${link("flow")}>Close</a></header>
    <${Chart} key=${stage.stage} minutes=${stage.minutes} at=${at} label=${`${stage.stage}: ${does}, a minute; the table below says the same`} />
    ${stage.parts.length > 0 && html`<${Table} label=${`${stage.stage}, by ${of}`} rows=${stage.parts} keyOf=${(part) => part.name} columns=${[
      { title: of, cell: (part) => html`<${Text}>${part.name}<//>` },
      { ...number("a minute", 90), cell: (part) => count(part.last_minute) },
      { title: "the last hour", width: 220, wide: true, cell: (part) => html`<${Sparkline} values=${part.minutes} label=${`${part.name}, the last hour`} />` },
      ...(waits ? [{ ...number(waits, 90), cell: (part) => count(part.backlog) }] : []),
      { ...number(age, 110), cell: (part) => html`<${Age} seconds=${part.oldest_age_seconds} />` },
      { ...number("failed", 110), cell: (part) => (part.failed_hour === 0 ? html`<span class="muted">0</span>`
        : html`<span class="state bad"><${Icon} tone="bad" />${failed ? html`<a href=${failed(part.name)}>${count(part.failed_hour)}</a>` : count(part.failed_hour)}</span>`) },
    ]} />`}
    <details class="fold"><summary>The hour as a table</summary><${Table} label="Minute by minute" rows=${minutes} keyOf=${(row) => row.at} columns=${[
      { title: inUtc ? "minute, UTC" : "minute", cell: (row) => clock(row.at, inUtc) }, { ...number(does), cell: (row) => count(row.n) },
    ]} /></details></section>`;
}

/* What needs a person, or is unusual. */

function Panel({ name, tone, number, none, href, children }) {
  return html`<section class=${`card panel ${number ? tone : ""}`} aria-label=${name}><header><h2>${name}</h2>
    ${number > 0 ? html`<span class=${`state ${tone}`}><${Icon} tone=${tone} />${count(number)}</span>` : html`<span class="state"><${Icon} tone="good" />${none}</span>`}
    ${href && html`<a class="all" href=${href}>Show<span class="hidden"> ${name}</span></a>`}</header>
    ${number > 0 && html`<ul>${children}</ul>`}</section>`;
}
const MOST = 4;
function Rows({ items, href, row }) {
  return html`${items.slice(0, MOST).map(row)}${items.length > MOST && html`<li><a href=${href}>and ${count(items.length - MOST)} more</a></li>`}`;
}

function Panels({ flow }) {
  const { approvals, oldest_approval_age_seconds: oldest, dead_letters: letters } = flow.waiting;
  const under = flow.operations;
  const ill = under.filter((one) => one.state === "failed" || one.is_stalled).length;
  return html`<div class="panels">
    <${Panel} name="Approvals" tone="warn" number=${approvals} none="none asked" href=${link("approvals")}>
      <li>${approvals === 1 ? "One action waits" : `${count(approvals)} actions wait`} for your answer, the oldest for ${spoken(oldest)}.</li><//>
    <${Panel} name="Dead letters" tone="bad" number=${letters} none="none" href=${link("letters")}>
      <li>${letters === 1 ? "One message was" : `${count(letters)} messages were`} given up on: see why, then redrive or discard.</li><//>
    <${Panel} name="Operations" tone=${ill ? "bad" : "wait"} number=${under.length} none="none under way" href=${link("operations")}>
      <${Rows} items=${under} href=${link("operations")} row=${(one) => html`<li key=${one.operation_id} class="operation"><a href=${link("operations", { id: one.operation_id })}>${visible(one.kind)}</a>
        <${State} word=${one.is_stalled ? "stalled" : one.state} /><${Bar} done=${one.done} total=${one.total} label=${`${one.kind}: done`} /></li>`} /><//>
    <${Panel} name="Breakers" tone="bad" number=${flow.open_breakers.length} none="all closed" href=${link("switches")}>
      <${Rows} items=${flow.open_breakers} href=${link("switches")} row=${(one) => html`<li key=${one.name}><strong><${Text}>${one.name}<//></strong>
        <span class="muted">${one.state.replaceAll("_", " ")} since <${Instant} at=${one.opened_at} />${one.retry_at && html`, tries again <${Instant} at=${one.retry_at} />`}</span>
        ${one.last_error && html`<p class="clamp"><${Text}>${one.last_error}<//></p>`}</li>`} /><//>
    <${Panel} name="Switched off" tone="bad" number=${flow.switches_off.length} none="nothing" href=${link("switches")}>
      <${Rows} items=${flow.switches_off} href=${link("switches")} row=${(one) => html`<li key=${one.scope}><strong><${Text}>${one.scope}<//></strong>
        <span class="muted">by <${Text}>${one.by}<//>, <${Instant} at=${one.since} /></span>
        ${one.reason && html`<p class="clamp"><${Text}>${one.reason}<//></p>`}</li>`} /><//></div>`;
}

/** One sentence: does it flow, and does somebody have to act? */
function Headline({ flow, poll }) {
  const said = [
    [flow.open_breakers.length, "breaker open", "breakers open", "bad"], [flow.switches_off.length, "switch off", "switches off", "bad"],
    [flow.waiting.dead_letters, "dead letter", "dead letters", "bad"],
    [flow.operations.filter((one) => one.state === "failed" || one.is_stalled).length, "operation stuck", "operations stuck", "bad"],
    [flow.stages.filter((one) => healthOf(one).word === "waiting").length, "stage behind", "stages behind", "warn"],
    [flow.waiting.approvals, "approval asked of you", "approvals asked of you", "warn"],
  ].filter(([number]) => number > 0);
  const tone = said.some((one) => one[3] === "bad") ? "bad" : said.length ? "warn" : "good";
  const stored = flow.stages.find((one) => one.stage === "store")?.last_minute ?? 0;
  return html`<header class="headline"><p class="verdict"><${Icon} tone=${tone} /><strong>${said.length
    ? said.map(([number, one, more]) => `${count(number)} ${number === 1 ? one : more}`).join(", ")
    : stored ? "All is well" : "All is well, and quiet"}</strong></p><${Stale} poll=${poll} /></header>`;
}

export function View({ query }) {
  const poll = usePoll("flow", {}, { seconds: 2 });
  const flow = poll.data;
  if (!flow) return html`<${Trouble} error=${poll.error} retry=${poll.reload} />${!poll.error && html`<p class="first">Reading the flow …</p>`}`;
  const opened = flow.stages.find((one) => one.stage === query.stage);
  return html`<${Headline} flow=${flow} poll=${poll} />
    <ol class="strip" aria-label="Stages">${flow.stages.map((stage) => html`<${Stage} key=${stage.stage} stage=${stage} open=${stage === opened} />`)}</ol>
    ${opened && html`<${Details} stage=${opened} at=${flow.at} />`}
    <${Panels} flow=${flow} />`;
}
