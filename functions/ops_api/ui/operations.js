/** Operations: what changes the flow on purpose, planned, started and followed to its end; the forms that plan one. */
import {
  Bar, Empty, Filters, Instant, More, Split, Stale, State, Table, Tabs, Text, Trouble, api, html, link, newKey,
  usePages, usePoll, useQuery, useRef, useState, utc,
} from "#kit";
import { Export } from "#views/export";
import { FOR_ADMINS, Lacking, Name, Operation, lacking } from "#views/operating";

export const title = "Operations";

const STATES = ["planning", "planned", "running", "paused", "done", "cancelled", "failed"];
const WHAT = {
  redrive: "Sends dead letters again, each with new attempts.",
  replay: "Sends what the outbox holds to a subscription, or to all of a topic, once more.",
  backfill: "Fetches a window of a source's past, and stores what is not stored yet.",
  rebuild: "Makes a consumer's tables again from the events, beside those in use, and puts them in their place.",
  retention: "Deletes what is older than so many days, for good.",
  erasure: "Removes all that is stored about an entity, or about one observation, for good.",
};
const EXPIRING = ["decisions", "events", "dead_letters", "raw_payloads", "processed_events", "delivery_failures",
  "consume_failures", "audit"];

export function View({ query }) {
  const params = { kind: query.kind, state: query.state, subscription: query.subscription };
  const pages = usePages("operations", params, { seconds: 3, keyOf: (one) => one.operation_id });
  const here = (more) => link("operations", { ...params, ...more });
  const columns = [
    { title: "Kind", width: 90, cell: (one) => html`<span class="oneline">${one.kind}</span>` },
    { title: "For", width: 150, cell: (one) => html`<${Name}>${one.subscription || "–"}<//>` },
    { title: "State", width: 130, cell: (one) => html`<${State} word=${one.is_stalled ? "stalled" : one.state} />` },
    { title: "Done", width: 210, wide: true, cell: (one) => one.total > 0
      && html`<${Bar} done=${one.done + one.skipped} total=${one.total} />` },
    { title: "Asked for", width: 100, cell: (one) => html`<${Instant} at=${one.requested_at} />` },
    { title: "By", width: 120, wide: true, cell: (one) => html`<${Name}>${one.started_by ?? one.requested_by}<//>` },
    { title: "Why", wide: true, cell: (one) => html`<span class="cut"><${Text}>${one.reason}<//></span>` },
  ];
  const isFiltered = Object.values(params).some(Boolean);
  const list = html`
    <${Filters} fields=${[
      { name: "kind", label: "Kind", kind: "select", options: [...Object.keys(WHAT), "discard"] },
      { name: "state", label: "State", kind: "select", options: STATES },
      { name: "subscription", label: "Subscription" },
    ]} />
    <div class="acts"><a class="button primary" href=${here({ new: "redrive" })}>Plan an operation …</a>
      <span class="push"><${Stale} poll=${pages} /> <${Export} path="operations" params=${params}
        name="operations" /></span></div>
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0
      ? html`<${Table} label="Operations" columns=${columns} rows=${pages.items} keyOf=${(one) => one.operation_id}
        current=${query.id}
          href=${(one) => here({ id: one.operation_id })} /><${More} pages=${pages} />`
      : !pages.busy && !pages.error && html`<${Empty}>${isFiltered ? "No operation fits these filters."
        : "No operation yet."}<//>`}`;
  const detail = query.id ? html`<${Operation} key=${query.id} id=${query.id} />`
    : query.new ? html`<${Planning} kind=${query.new in WHAT ? query.new : "redrive"} here=${here}
      reload=${pages.reload} />` : null;
  return html`<${Split} list=${list} detail=${detail} title=${query.id ? "Operation" : "Plan an operation"}
    closeHref=${here()} />`;
}

/* The forms. A field is [name, label, how it is entered, what it needs]. */

const SUBSCRIPTION = ["subscription", "Subscription", "subscription"];
const FIELDS = {
  redrive: [SUBSCRIPTION, ["kind", "Given up by", ["relay", "consumer", "invocation"]],
    ["reason", "Reason has", "text"],
    ["since", "Given up since", "instant"], ["until", "Given up before", "instant"], ["event_id", "Event", "id"],
      ["trace_id", "Trace", "id"],
    ["everything", "All open dead letters (instead of the above)", "flag"]],
  replay: [SUBSCRIPTION, ["topic", "Or to all of a topic", "topic"], ["event_type", "Event's type", "text"],
    ["entity_id", "Entity", "text"],
    ["source", "Source", "text"], ["occurred_since", "Occurred since", "instant"],
      ["occurred_until", "Occurred before", "instant"],
    ["ingested_since", "Stored since", "instant"], ["ingested_until", "Stored before", "instant"]],
  backfill: [["symbols", "Symbols, with commas", "list", true], ["since", "Since", "instant", true],
    ["until", "Before", "instant"],
    ["interval", "Interval, such as 1m", "text"], ["source", "Source", "text"],
    ["publish", "Store only, and send nothing to subscriptions", "not"]],
  rebuild: [["subscription", "Consumer", "subscription", true]],
  retention: EXPIRING.map((what) => [what, `${what.replaceAll("_", " ")} older than, in days`, "days"]),
  erasure: [["entity_id", "Entity", "text"], ["source", "Of this source alone", "text"],
    ["event_id", "Or one event's observation", "id"],
    ["take_in_again", "Take it in again when a source tells it again", "flag"]],
};

/** Returns the filter that a form asks for; a field that is empty is left out. */
function filterOf(kind, given) {
  const inUtc = utc.get() === "1";
  const read = {
    instant: (text) => new Date(text + (inUtc ? "Z" : "")).toISOString(),
    flag: () => true,
    not: () => false,
    list: (text) => text.split(/[\s,]+/).filter(Boolean),
    days: Number,
  };
  const filter = Object.fromEntries(FIELDS[kind].filter(([name]) => given.get(`filter.${name}`)?.trim()).map(([name, ,
    how]) => {
    const text = given.get(`filter.${name}`).trim();
    return [name, read[how] ? read[how](text) : text];
  }));
  return kind === "retention" ? { days: filter } : filter;
}

function Field({ name, label, how, required, known }) {
  const field = { name: `filter.${name}`, required, autocomplete: "off" };
  if (how === "flag" || how === "not") return html`<label class="check"><input type="checkbox" name=${field.name}
    value="yes" /> ${label}</label>`;
  const input = Array.isArray(how) ? html`<select ...${field}>
    <option value="">any</option>${how.map((one) => html`<option>${one}</option>`)}</select>`
    : how === "instant" ? html`<input type="datetime-local" step="1" ...${field} />`
    : how === "days" ? html`<input type="number" min="30" max="36500" ...${field} placeholder="none of them" />`
    : known[how] ? html`<input list=${`known-${how}`} maxlength="200" spellcheck=${false} ...${field} />`
    : html`<input class=${how} maxlength=${how === "list" ? 4000 : 256} spellcheck=${false} ...${field} />`;
  return html`<label class="field"><span>${label}${how === "instant"
    && (utc.get() === "1" ? " (UTC)" : " (local time)")}</span>${input}</label>`;
}

function Planning({ kind, here, reload }) {
  const [, setQuery] = useQuery();
  const key = useRef(newKey());
  const [state, setState] = useState({ busy: false, error: null });
  const subscriptions = usePoll("subscriptions", { limit: 200 }, { seconds: 600 }).data?.items ?? [];
  const known = { subscription: subscriptions.map((one) => one.name),
    topic: [...new Set(subscriptions.map((one) => one.topic))] };
  const scope = FOR_ADMINS.has(kind) ? "admin" : "operate";
  const plan = async (event) => {
    event.preventDefault();
    if (lacking(scope) || state.busy) return;
    const given = new FormData(event.target);
    const body = { kind, filter: filterOf(kind, given), reason: given.get("reason").trim() };
    if (given.get("rate")) body.rate = Number(given.get("rate"));
    setState({ busy: true, error: null });
    try {
      const { operation_id: id } = await api("POST", "operations", { body, key: key.current });
      reload();
      setQuery({ new: undefined, id });
    } catch (error) {
      if (error.status !== 0) key.current = newKey();
      setState({ busy: false, error });
    }
  };
  return html`<div class="planning">
    <${Tabs} label="Kinds" current=${kind} href=${(name) => here({ new: name })}
      tabs=${Object.keys(WHAT).map((name) => ({ name, title: name }))} />
    <p>${WHAT[kind]} Planning counts, and does nothing; what is planned is started by its plan.</p>
    ${kind === "backfill" && html`<p class="muted">A file is sent in pieces by <code>acp backfill file</code>.</p>`}
    <form key=${kind} class="form-grid" onSubmit=${plan}>
      ${Object.entries(known).map(([name, values]) => html`<datalist key=${name}
        id=${`known-${name}`}>${values.map((one) =>
        html`<option value=${one} />`)}</datalist>`)}
      ${FIELDS[kind].map(([name, label, how, required]) => html`<${Field} key=${name} name=${name} label=${label}
        how=${how}
        required=${required} known=${known} />`)}
      ${!FOR_ADMINS.has(kind) && kind !== "rebuild" && html`<label class="field"><span>At most so many a second</span>
        <input name="rate" type="number" min="0.01" max="100000" step="any" placeholder="the kind's own" /></label>`}
      <label class="field full"><span>Why? It is kept on record.</span>
        <input name="reason" required pattern=".*\\S.*" maxlength="1000" autocomplete="off" /></label>
      <div class="full"><${Trouble} error=${state.error} />
        <p class="acts"><button class="primary" aria-disabled=${lacking(scope) !== "" || state.busy}
          title=${lacking(scope) || undefined}>Plan it</button></p>
        <${Lacking} scope=${scope} what="plan it" /></div></form></div>`;
}
