/** Dead letters of every kind: what was given up on, and how it gets delivered after all, or let go. */
import {
  Empty, Filters, Id, Instant, Json, More, Split, Stale, State, Table, Text, Trouble, api, count, html, link, useEffect,
  usePages, usePoll, useQuery, useState, visible,
} from "#kit";
import { Export } from "#views/export";
import { Act, Asked, Clock, Facts, Lacking, Name, Operation, PlanDialog, counted } from "#views/operating";

export const title = "Dead letters";

const KINDS = { relay: "the relay", consumer: "its consumer", invocation: "Lambda" };
/** The filters, as both the list's query and a redrive's filter spell them. */
const FILTERS = ["kind", "subscription", "reason", "since", "until", "event_id", "trace_id", "ids"];
const chosenBy = (query) => Object.fromEntries(FILTERS.filter((name) => query[name]).map((name) => [name,
  query[name]]));

/** Returns a redrive's filter: these letters, or all that the list's filters select. */
function wanted(chosen, ticked) {
  if (ticked.size) return { ids: [...ticked] };
  const { ids, ...rest } = chosen;
  const filter = ids ? { ...rest, ids: ids.split(",").map(Number) } : rest;
  return Object.keys(filter).length ? filter : { everything: true };
}

function useTicked(items) {
  const [ticked, setTicked] = useState(new Set());
  const there = new Set(items.filter((one) => !one.resolution).map((one) => one.id));
  const shown = new Set([...ticked].filter((id) => there.has(id)));
  const toggle = (id) => setTicked((old) => {
    const next = new Set(old);
    if (!next.delete(id)) next.add(id);
    return next;
  });
  const all = (on) => setTicked(on ? there : new Set());
  return { ticked: shown, toggle, all, isAll: there.size > 0 && shown.size === there.size };
}

export function View({ query }) {
  const [, setQuery] = useQuery();
  const chosen = chosenBy(query);
  const params = { ...chosen, resolved: query.resolved || undefined };
  const pages = usePages("dead-letters", params, { seconds: 5, keyOf: (one) => one.id });
  const { ticked, toggle, all, isAll } = useTicked(pages.items);
  const [dialog, setDialog] = useState(null);
  const [told, tell] = useState("");
  const [discards, setDiscards] = useState(0);
  const here = (more) => link("letters", { ...params, ...more });
  const redrive = (filter, what) => setDialog({ filter, title: what });
  const discard = (ids) => setDialog({ title: `Let ${counted(ids.length, "dead letter")} go?`, verb: "Discard",
    danger: true,
    text: html`<p>${ids.length === 1 ? "It stays" : "They stay"} on record, and ${ids.length === 1 ? "is"
      : "are"} never sent again.</p>`,
    run: async ({ reason, key }) => {
      const { discarded, not_open: notOpen } = await api("POST", "dead-letters/discard",
        { body: { ids, reason }, key });
      const total = Object.values(discarded).reduce((sum, one) => sum + one, 0);
      tell(`${counted(total, "letter")} discarded${notOpen?.length ? `, ${count(notOpen.length)} not open any more`
        : ""}.`);
      all(false);
      pages.reload();
      setDiscards((n) => n + 1);
    } });
  const isFiltered = Object.keys(chosen).length > 0;
  const columns = [
    { title: "Letter", width: 70, cell: (one) => `#${one.id}` },
    { title: html`<input type="checkbox" aria-label="Tick all open letters that are shown" checked=${isAll}
      onChange=${() => all(!isAll)} />`,
      width: 40, cell: (one) => !one.resolution && html`<input type="checkbox" class="tickbox"
        aria-label=${`Tick letter ${one.id}`}
        checked=${ticked.has(one.id)} onChange=${() => toggle(one.id)} />` },
    { title: "Given up", width: 100, wide: true, cell: (one) => html`<${Instant} at=${one.dead_lettered_at} />` },
    { title: "For", width: 140, cell: (one) => html`<${Name}>${one.subscription ?? one.queue}<//>` },
    { title: "By", width: 110, wide: true, cell: (one) => html`<${Name}>${KINDS[one.kind] ?? one.kind}<//>` },
    { title: "Reason", cell: (one) => html`<span class="cut"><${Text}>${one.reason}<//></span>` },
    { title: "Event", width: 130, wide: true, cell: (one) => html`<${Id} value=${one.event_id} view="event" />` },
    { title: "State", width: 110, wide: true, cell: (one) => html`<${State} word=${one.resolution ?? "dead"}
      tone=${one.resolution ? "idle" : "bad"} />` },
  ];
  const everything = isFiltered ? "Redrive all that match …" : "Redrive all …";
  const filters = html`<${Filters} fields=${[
      { name: "subscription", label: "Subscription" },
      { name: "reason", label: "Reason has" },
      { name: "kind", label: "Given up by", kind: "select",
        options: Object.entries(KINDS).map(([value, label]) => ({ value, label })) },
      { name: "since", label: "Since", kind: "instant" },
      { name: "until", label: "Until", kind: "instant" },
      { name: "event_id", label: "Event", kind: "id" },
      { name: "trace_id", label: "Trace", kind: "id" },
    ]} />`;
  const isNarrow = matchMedia("(max-width: 720px)").matches;
  const list = html`
    ${isNarrow ? html`<details class="fold" open=${isFiltered}><summary>Filters</summary>${filters}</details>`
      : filters}
    <div class="acts">
      ${ticked.size > 0
        ? html`<${Act} scope="operate" kind="primary"
          onClick=${() => redrive(wanted(chosen, ticked), `Redrive ${counted(ticked.size, "ticked letter")}`)}>
            Redrive ${count(ticked.size)} ticked …<//>`
        : html`<${Act} scope="operate" kind="primary" off=${pages.items.length ? "" : "no letter is listed"}
            onClick=${() => redrive(wanted(chosen, ticked), isFiltered ? "Redrive all that match"
              : "Redrive all dead letters")}>${everything}<//>`}
      <${Act} scope="operate" kind="danger" off=${ticked.size ? "" : "no letter is ticked"}
        onClick=${() => discard([...ticked])}>Discard ticked …<//>
      <span class="told" role="status">${told}</span>
      <span class="push"><${Stale} poll=${pages} />
        <a class="button" href=${here({ resolved: query.resolved ? undefined : "true" })}>${query.resolved
          ? "Open ones alone" : "Settled ones, too"}</a>
        <${Export} path="dead-letters" params=${params} name="dead-letters" /></span></div>
    <${Lacking} scope="operate" what="redrive or discard" />
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0
      ? html`<${Table} label="Dead letters" columns=${columns} rows=${pages.items} keyOf=${(one) => one.id}
        current=${Number(query.id) || undefined}
          href=${(one) => here({ id: one.id })} /><${More} pages=${pages} />`
      : !pages.busy && !pages.error && html`<${Empty}>${isFiltered ? "No open dead letter fits these filters."
          : "No dead letters: nothing was given up on."}<//>`}`;
  const detail = query.operation ? html`<${Operation} key=${query.operation} id=${query.operation} />`
    : query.id && html`<${Letter} key=${query.id} id=${query.id} redrive=${redrive} discard=${discard}
      discards=${discards} />`;
  return html`<${Split} list=${list} detail=${detail || null} closeHref=${here()}
      title=${query.operation ? "Redrive" : `Dead letter ${visible(query.id ?? "")}`} />
    ${dialog?.filter && html`<${PlanDialog} title=${dialog.title} verb="Redrive"
      request=${{ kind: "redrive", filter: dialog.filter }}
      onClose=${() => setDialog(null)}
      onStarted=${(operation) => { setDialog(null); all(false); pages.reload(); setQuery({ operation,
        id: undefined }); }} />`}
    <${Asked} what=${dialog?.run ? dialog : null} onClose=${() => setDialog(null)} />`;
}

function Letter({ id, redrive, discard, discards }) {
  const poll = usePoll(`dead-letters/${encodeURIComponent(id)}`, undefined, { seconds: 10 });
  useEffect(() => { if (discards) poll.reload(); }, [discards]);
  const letter = poll.data;
  if (!letter) return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
    : html`<p class="muted">Reading …</p>`;
  const isOpen = !letter.resolution;
  const off = letter.is_redrivable ? "" : "the outbox does not hold its message: it can only be discarded";
  return html`<div class="letter-pane">
    <p class="cause"><${State} word=${letter.resolution ?? "dead"} tone=${isOpen ? "bad"
      : "idle"} /> <${Text}>${letter.reason}<//></p>
    ${isOpen && html`<p class="acts"><${Act} scope="operate" kind="primary" off=${off}
        onClick=${() => redrive({ ids: [letter.id] }, `Redrive letter ${letter.id}`)}>Redrive it …<//>
      <${Act} scope="operate" kind="danger" onClick=${() => discard([letter.id])}>Discard it …<//></p>
      ${off && html`<p class="muted">It cannot be sent again: ${off}.</p>`}
      <${Lacking} scope="operate" what="redrive or discard it" />`}
    <${Facts} rows=${[
      ["Given up by", KINDS[letter.kind] ?? letter.kind],
      ["Given up", html`<${Clock} at=${letter.dead_lettered_at} /> (<${Instant} at=${letter.dead_lettered_at} />)`],
      ["Attempts", count(letter.delivery_attempts)],
      ["For", letter.subscription],
      ["Topic", letter.topic],
      ["Queue", letter.queue],
      ["Event", letter.event_id && html`<${Id} value=${letter.event_id} view="event" />`],
      ["Type", letter.event_type],
      ["Trace", letter.trace_id && html`<${Id} value=${letter.trace_id} />`],
      ["Sent by operation", letter.operation_id && html`<${Id} value=${letter.operation_id} view="operations" />`],
      ["Settled", letter.resolved_at && html`by <${Text}>${letter.resolved_by}<//>, <${Instant}
        at=${letter.resolved_at} />`],
      ["Because", letter.resolved_because],
      ["Redriven by", letter.redriven_by && html`<${Id} value=${letter.redriven_by} view="operations" />`],
    ]} />
    ${letter.failures?.length > 0 && html`<h3 class="part">Failures</h3>
      <ol class="failures">${letter.failures.map((one) => html`<li key=${one.failed_at}>
      <span class="muted">attempt ${count(one.attempt)}, <${Instant} at=${one.failed_at} />
        </span> <${Text}>${one.error}<//></li>`)}</ol>`}
    ${letter.body !== null && letter.body !== undefined
      && html`<h3 class="part">What it held</h3><${Json} value=${parsed(letter.body)} label="What it held" />`}
    ${letter.body_base64 && html`<h3 class="part">What it held, in base64</h3><${Json} value=${letter.body_base64}
      label="What it held" />`}
    ${letter.attributes && html`<h3 class="part">Attributes</h3><${Json} value=${letter.attributes}
      label="Attributes" />`}</div>`;
}

/** Returns JSON's value; a text that is none, or whose numbers JavaScript would round, as it is. */
function parsed(text) {
  if (/\d{16}/.test(text)) return text;
  try { return JSON.parse(text); } catch { return text; }
}
