/** One event: where it stands, its timeline in order of time, its spans, and what came from the source beside it. */
import {
  Empty, Icon, Id, Instant, Json, Split, State, Stale, Term, Text, Trouble, api, exact, html, link, spoken, useEffect,
  useMemo, usePoll, useRef, useState, useStore, utc, visible,
} from "#kit";

export const title = "Event";

/** Microseconds since 1970: a Date has milliseconds alone, and steps follow one another faster. */
export function micros(at) {
  const digits = /\.(\d+)/.exec(at)?.[1] ?? "";
  return Math.floor(Date.parse(at) / 1000) * 1e6 + Number(digits.padEnd(6, "0").slice(0, 6));
}
const seconds = (from, to) => (micros(to) - micros(from)) / 1e6;

/** Reads something once; `path` null reads nothing. */
export function useOnce(path, params) {
  const [said, setSaid] = useState({});
  const asked = JSON.stringify([path, params]);
  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    api("GET", path, { params, signal: stop.signal }).then(
      (data) => setSaid({ asked, data }), (error) => stop.signal.aborted || setSaid({ asked, error }));
    return () => stop.abort();
  }, [asked]);
  return said.asked === asked ? said : {};
}

/* The story. */

const again = (delivery) => (delivery.operation_id ? "promised again" : "promised");

/** Returns all that is known of an event in order of time. `acp trace` tells the same in the same words. */
export function story({ event, raw_payload: raw, deliveries, processing, consumer_dead_letters: letters,
  consume_failures: failures }) {
  const told = [];
  const tell = (at, tone, text, more = {}) => at && told.push({ at, tone, text, ...more });
  if (raw) tell(raw.fetched_at, "idle", `fetched from ${raw.source}`);
  const revision = event.revision ? `, revision ${event.revision}` : "";
  tell(event.ingested_at, "good", `stored with its messages, in one transaction${revision}`);
  const redrivenAt = new Map([...deliveries, ...letters].filter((one) => one.redriven_by)
    .map((one) => [`${one.subscription} ${one.redriven_by}`, one.resolved_at]));
  for (const one of deliveries) {
    const about = { who: one.subscription };
    const since = redrivenAt.get(`${one.subscription} ${one.operation_id}`) ?? one.promised_at ?? one.created_at;
    tell(since, "wait", `${again(one)} on ${one.topic}`, { ...about, operation: one.operation_id });
    for (const failure of one.failures) {
      tell(failure.failed_at, "bad", `attempt ${failure.attempt} failed`,
        { ...about, error: failure.error, by: failure.claimed_by });
    }
    if (one.delivered_at) {
      tell(one.delivered_at, "good", `delivered as message ${one.message_id}`, about);
    } else if (one.dead_lettered_at) {
      tell(one.dead_lettered_at, "bad", "dead-lettered",
        { ...about, error: one.last_error, letter: one.dead_letter_id });
      if (one.resolution) tell(one.resolved_at, "warn", `${one.resolution} by ${one.resolved_by}`, about);
    } else if (one.state === "in_flight") {
      tell(one.next_attempt_at, "wait", `claimed by ${one.claimed_by} until then`, { ...about, isAhead: true });
    } else if (one.next_attempt_at) {
      tell(one.next_attempt_at, one.last_error ? "warn" : "wait", one.last_error ? "next attempt" : "first attempt",
        { ...about, isAhead: true });
    }
  }
  for (const one of failures) {
    tell(one.failed_at, "bad", `failed, receive ${one.attempt}`, { who: one.subscription, error: one.error });
  }
  for (const one of letters) {
    const about = { who: one.subscription };
    tell(one.dead_lettered_at, "bad", "given up on", { ...about, error: one.reason, letter: one.id });
    if (one.resolution) tell(one.resolved_at, "warn", `${one.resolution} by ${one.resolved_by}`, about);
  }
  for (const one of processing) tell(one.processed_at, "good", "processed", { who: one.consumer });
  return told.map((one, n) => [micros(one.at), n, one]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((row) => row[2]);
}

/** Returns where an event stands with each subscription: the newest of its deliveries, and whether it was processed. */
export function standing({ event, deliveries, processing, consumer_dead_letters: letters,
  consume_failures: failures }) {
  const newest = new Map(deliveries.map((one) => [one.subscription, one]));
  const done = new Map(processing.map((one) => [one.consumer, one.processed_at]));
  const rows = [...newest.values()].map((one) => {
    const letter = letters.find((held) => held.subscription === one.subscription && held.resolution === null);
    const open = one.dead_lettered_at && !one.resolution ? one.dead_letter_id : letter?.id;
    const failed = failures.filter((each) => each.subscription === one.subscription).at(-1);
    const at = done.get(one.subscription);
    if (open) {
      return { who: one.subscription, word: "dead_lettered", letter: open, error: letter?.reason ?? one.last_error,
        text: at ? "it was processed all the same" : "nobody acts on it until it is sent again" };
    }
    if (at) return { who: one.subscription, word: "processed",
      text: `${spoken(seconds(event.ingested_at, at))} after it was stored` };
    if (one.state === "delivered") {
      return { who: one.subscription, word: failed ? "retrying" : "delivered", error: failed?.error,
        text: failed ? "its consumer failed on it; the queue hands it out again"
          : "its queue has it; its consumer has recorded nothing of it" };
    }
    const text = { in_flight: "it is being sent", pending: "it waits to be sent",
      retrying: "an attempt failed; it is sent again",
      redriven: "it was sent again", discarded: "somebody let it go" }[one.state] ?? "";
    return { who: one.subscription, word: one.resolution ?? one.state, error: one.resolution ? null : one.last_error,
      text };
  });
  for (const [consumer, at] of done) {
    if (!newest.has(consumer)) rows.push({ who: consumer, word: "processed",
      text: `${spoken(seconds(event.ingested_at, at))} after it was stored` });
  }
  return rows;
}

const LONG = 600;
/** A text of any length: a long one shows its beginning, and the rest when it is opened. */
export function Said({ children, name = "The whole text" }) {
  const text = visible(children ?? "");
  return text.length <= LONG ? html`<${Text}>${text}<//>`
    : html`<details class="long"><summary><${Text}>${`${text.slice(0, 200)} …`}<//> <span class="muted">${name}</span>
      </summary>
    <${Text}>${text}<//></details>`;
}
/** A time of a day that is told above it. */
function Clock({ at }) {
  const text = exact(at, useStore(utc) === "1");
  return html`<time class="when number" datetime=${at}
    title=${`${exact(at, false)} local, ${exact(at, true)}`}>${text.slice(11, 23)}</time>`;
}
function Story({ timeline }) {
  const told = story(timeline);
  const inUtc = useStore(utc) === "1";
  let day = null, error = null;
  return html`<ol class="story">${told.map((one) => {
    const date = exact(one.at, inUtc).slice(0, 10);
    const isNewDay = date !== day;
    const isSame = one.error && one.error === error;
    day = date;
    error = one.error ?? error;
    const since = seconds(timeline.event.ingested_at, one.at);
    return html`<li key=${`${one.at} ${one.who} ${one.text}`} class=${one.isAhead ? "ahead" : undefined}>
      ${isNewDay && html`<p class="day">${date}</p>`}
      <${Icon} tone=${one.tone} />
      <${Clock} at=${one.at} />
      <div><p>${one.who && html`<b><${Text}>${one.who}<//></b> `}<${Text}>${one.text}<//>
          <span class="muted number"> ${Math.abs(since) < 5e-4 ? ""
            : `${since < 0 ? "−" : "+"}${spoken(since)}`}</span></p>
        ${isSame ? html`<p class="muted">for the same reason</p>` : one.error
          && html`<div class="said"><${Said}>${one.error}<//></div>`}
        ${one.by && html`<p class="muted">by <${Text}>${one.by}<//></p>`}
        ${one.operation && html`<p class="muted">by operation <${Id} value=${one.operation} view="operations" /></p>`}
        ${one.letter && html`<p><a href=${link("letters", { id: one.letter })}>dead letter ${one.letter}</a></p>`}</div>
          </li>`;
  })}</ol>`;
}

/* Spans. */

const value = (given) => Object.values(given ?? {})[0];
/** Returns the spans of an OTLP answer, each below its parent, with times in seconds from the first. */
export function spansOf(otlp) {
  const all = (otlp?.resourceSpans ?? []).flatMap((one) => {
    const service = value(one.resource?.attributes?.find((each) => each.key === "service.name")?.value);
    return (one.scopeSpans ?? []).flatMap((scope) => scope.spans ?? []).map((each) => ({ ...each, service }));
  });
  if (!all.length) return { rows: [], total: 0 };
  const first = all.map((one) => BigInt(one.startTimeUnixNano)).reduce((a, b) => (a < b ? a : b));
  const at = (nanos) => Number(BigInt(nanos) - first) / 1e9;
  const spans = all.map((one) => ({ ...one, start: at(one.startTimeUnixNano), end: at(one.endTimeUnixNano) }));
  const known = new Set(spans.map((one) => one.spanId));
  const below = Map.groupBy(spans, (one) => (known.has(one.parentSpanId) ? one.parentSpanId : ""));
  const rows = [];
  const walk = (parent, depth) => (below.get(parent) ?? []).sort((a, b) => a.start - b.start).forEach((one) => {
    rows.push({ ...one, depth });
    if (depth < 32) walk(one.spanId, depth + 1);
  });
  walk("", 0);
  return { rows, total: Math.max(...spans.map((one) => one.end), 1e-6) };
}
/** The spans that the record stands for, as a waterfall; says so where this API has none. */
export function Waterfall({ path }) {
  const place = useRef();
  const [isSeen, setSeen] = useState(false);
  useEffect(() => {
    // Most who open a record do not scroll down to its spans, which are a second answer of the same size.
    const watching = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && setSeen(true));
    watching.observe(place.current);
    return () => watching.disconnect();
  }, []);
  return html`<div ref=${place}>${isSeen ? html`<${Spans} path=${path} />`
    : html`<p class="muted">Reading …</p>`}</div>`;
}
function Spans({ path }) {
  const { data, error } = useOnce(path, { format: "otlp" });
  const { rows, total } = useMemo(() => spansOf(data), [data]);
  if (error) return html`<p class="muted">${error.status === 400 || error.status === 404 ? "This API tells no spans."
    : visible(error.message)}</p>`;
  if (!rows.length) return html`<p class="muted">${data ? "No spans." : "Reading …"}</p>`;
  return html`<div class="waterfall"><ol>${rows.map((one) => html`<li key=${one.spanId}><details><summary>
      <span class="name" data-depth=${Math.min(6, one.depth)}><${Icon} tone=${one.status?.code === 2 ? "bad"
        : "good"} /><${Text}>${one.name}<//></span>
      <svg class=${one.status?.code === 2 ? "bad" : ""} height="16" aria-hidden="true"><rect y="3" height="10" rx="2"
        x=${`${(99.5 * one.start) / total}%`}
        width=${`${Math.max(0.5, (100 * (one.end - one.start)) / total)}%`} /></svg>
      <span class="number">${spoken(one.end - one.start)}</span></summary>
      <dl class="facts">${one.status?.message && html`<dt>failed</dt><dd class="said"><${Said}>${one.status.message}<//>
        </dd>`}
        ${one.service && html`<dt>service</dt><dd><${Text}>${one.service}<//></dd>`}<dt>from</dt>
          <dd>+${spoken(one.start)}</dd><dt>span</dt><dd><${Term}>${visible(one.spanId)}<//></dd>
        ${(one.attributes ?? []).map((each) => html`<dt><${Text}>${each.key}<//></dt><dd>
          <${Text}>${String(value(each.value))}<//></dd>`)}
        ${(one.events ?? []).map((each) => html`<dt><${Text}>${each.name}<//></dt><dd>${(each.attributes
          ?? []).map((said) =>
          html`<div><${Text}>${`${said.key}: ${value(said.value)}`}<//></div>`)}</dd>`)}</dl></details></li>`)}</ol>
    <details class="fold"><summary>As OTLP, in JSON</summary><${Json} value=${data}
      label="Spans as OTLP" /></details></div>`;
}

/* What it led to. */

export function Section({ name, children, ...rest }) {
  return html`<section class="part" aria-label=${name} ...${rest}><h2>${name}</h2>${children}</section>`;
}
function Decisions({ id, decision }) {
  const { data, error } = useOnce("decisions", { event_id: id, limit: 20 });
  if (error) return html`<p class="muted">${visible(error.message)}</p>`;
  if (!data) return html`<p class="muted">Reading …</p>`;
  if (!data.items.length) return html`<p class="muted">No decision was made on it.</p>`;
  return html`<ul class="plain">${data.items.map((one) => html`<li key=${one.decision_id}><a href=${link("decision",
    { id: one.decision_id })}>
    <${Text}>${one.entity_id}<//> <${Text}>${one.anomaly_kind}<//></a> <${State} word=${one.state} />
    ${one.action_type && html` <${Text}>${one.action_type}<//>`} <span class="muted"><${Instant} at=${one.opened_at} />
      </span></li>`)}</ul>`;
}

/** An event as a pane shows it, or a whole page. */
export function Detail({ id }) {
  const poll = usePoll(`events/${encodeURIComponent(id)}`, undefined, { seconds: 10 });
  if (!poll.data) return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
    : html`<p class="muted part">Reading …</p>`;
  const { event, raw_payload: raw } = poll.data;
  const { payload, ...envelope } = event;
  const stands = standing(poll.data);
  return html`<div class="detail">
    <section class="part headline" aria-label="Where it stands">
      <p class="about"><strong><${Text}>${event.entity_id
        ?? event.source}<//></strong> <code><${Text}>${event.event_type}<//></code>
        <${Stale} poll=${poll} /></p>
      ${stands.length ? html`<ul class="stands">${stands.map((one) => html`<li key=${one.who}>
        <${State} word=${one.word} /><b><${Text}>${one.who}<//></b><span class="muted">${one.text}</span>
        ${one.letter && html`<a class="button" href=${link("letters", { id: one.letter })}>Send again …</a>`}
        ${one.error && html`<div class="said"><${Said}>${one.error}<//></div>`}</li>`)}</ul>`
    : html`<p><${State} word="promised to nobody" tone="warn" />
        <span class="muted"> its topic had no subscription then, or it was stored without being published</span></p>`}
      <dl class="facts"><dt>about</dt><dd><${Instant} at=${event.occurred_at} absolute />${event.revision
        ? `, revision ${event.revision}` : ""}
          ${event.series && html` <span class="muted"><${Text}>${event.series}<//></span>`}</dd>
        <dt>source</dt><dd><${Text}>${event.source}<//></dd>
        <dt>event</dt><dd><${Id} value=${event.event_id} view="event" /></dd>
        <dt>run</dt><dd><${Id} value=${event.trace_id} /> <a href=${link("events",
          { trace_id: event.trace_id })}>all events of this run</a></dd></dl>
    </section>
    <${Section} name="Timeline"><${Story} timeline=${poll.data} /><//>
    <${Section} name="Decisions on it"><${Decisions} id=${event.event_id} /><//>
    <${Section} name="Spans"><${Waterfall} path=${`events/${event.event_id}`} /><//>
    <${Section} name="What the source said, and what was made of it"><div class="beside">
      <div><h3>Raw payload</h3>${raw ? html`<p class="muted">fetched <${Instant} at=${raw.fetched_at} />${raw.omitted
        && html`; <${Text}>${raw.omitted}<//>`}</p>
        ${!raw.omitted && html`<${Json} value=${raw.payload_json} label="Raw payload" />`}`
          : html`<p class="muted">It came from no source's answer.</p>`}</div>
      <div><h3>Message</h3><p class="muted">as every subscription gets it</p><${Json} value=${payload}
        label="Payload" />
        <details class="fold"><summary>Envelope</summary><${Json} value=${envelope}
          label="Envelope" /></details></div></div><//>
    <p class="muted part">In a terminal: <${Term}>acp trace ${event.event_id}<//></p></div>`;
}

export function View({ query }) {
  if (!query.id) return html`<${Empty}>The address names no event. <a href=${link("events")}>All events</a><//>`;
  return html`<${Split} list=${html`<article class="card whole"><${Detail} key=${query.id}
    id=${query.id} /></article>`} />`;
}
