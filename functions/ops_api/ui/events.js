/** The list of events: live, filtered by the query string, with the timeline of the chosen one beside it. */
import {
  Empty, Filters, Id, Instant, More, Split, Stale, State, Table, Text, Trouble, api, count, html, link, useEffect,
  usePoll, useState,
} from "#kit";
import { Detail } from "#views/event";
import { Export } from "#views/export";

export const title = "Events";

/**
 * Reads a list page by page, and its first page again and again. What is shown is brought up to date where it stands;
 * what is new is only counted, so that no row moves from under the cursor, until `show` is called.
 */
export function useLive(path, params, keyOf) {
  const asked = JSON.stringify([path, params]);
  const poll = usePoll(path, params, { seconds: 5 });
  const [held, setHeld] = useState({ asked: null });
  const [rest, setRest] = useState({ busy: false, error: null });
  useEffect(() => {
    if (!poll.data) return;
    setHeld((old) => {
      if (old.asked !== asked || !old.items.length) return { asked, ...poll.data };
      const fresh = new Map(poll.data.items.map((item) => [keyOf(item), item]));
      return { ...old, items: old.items.map((item) => fresh.get(keyOf(item)) ?? item) };
    });
  }, [poll.data, asked]);
  const shown = held.asked === asked ? held : { items: [], next: null };
  const seen = new Set(shown.items.map(keyOf));
  // Rows of the first page that stand below what is shown are not new: they were moved up by what is gone.
  const fresh = poll.data?.items ?? [];
  const last = fresh.findIndex((item) => seen.has(keyOf(item)));
  const isWhole = last < 0;
  const news = shown.items.length ? (isWhole ? fresh.length : last) : 0;
  const loadMore = async () => {
    if (rest.busy || !shown.next) return;
    setRest({ busy: true, error: null });
    try {
      const page = await api("GET", path, { params: { ...params, after: shown.next } });
      setHeld((old) => (old.asked === asked ? { asked, items: [...old.items, ...page.items], next: page.next } : old));
      setRest({ busy: false, error: null });
    } catch (error) { setRest({ busy: false, error }); }
  };
  return {
    items: shown.items, more: Boolean(shown.next), busy: rest.busy || (!poll.data && !poll.error), loadMore, poll,
    error: rest.error ?? (poll.data ? null : poll.error), news, isWhole, show: () => setHeld({ asked, ...poll.data }),
  };
}

/** The line above a live list: how up to date it is, what is new, and its export. */
export function LiveBar({ live, path, params, name }) {
  return html`<div class="livebar"><span role="status">${live.news > 0
    ? html`<button type="button" class="news" onClick=${live.show}>${count(live.news)}${live.isWhole ? " or more"
      : ""} new: show</button>`
    : html`<${Stale} poll=${live.poll} />`}</span><${Export} path=${path} params=${params} name=${name} /></div>`;
}
/** Picks the filters out of the query string; an id's beginning stands alone. */
export function chosen(query, names) {
  const given = Object.fromEntries(names.filter((name) => query[name]).map((name) => [name, query[name]]));
  return given.id_prefix ? { id_prefix: given.id_prefix } : given;
}

const NARROW = matchMedia("(max-width: 720px)");
/** The filters of a list; on a phone they are folded until one is set, for the list comes first there. */
export function Filtering({ query, names, fields }) {
  const set = names.filter((name) => query[name]).length;
  const [isOpen] = useState(set > 0 || !NARROW.matches);
  return html`<details class="filtering" open=${isOpen}><summary>Filters${set ? ` (${set})`
    : ""}</summary><${Filters} fields=${fields} /></details>`;
}

/** The contract's types of events; a test holds them equal. */
const TYPES = [
  "MARKET_TICK_INGESTED", "CORPORATE_SPLIT_INGESTED", "CORPORATE_DIVIDEND_INGESTED", "SIGNAL_REJECTED",
    "SOURCE_FETCH_FAILED",
  "SOURCE_GAP_DETECTED", "ANOMALY_DETECTED", "ANOMALY_OVERLOOKED", "DECISION_OPENED", "DECISION_WOKEN",
    "AGENT_CALL_REQUESTED",
  "AGENT_ANSWERED", "AGENT_FAILED", "HYPOTHESIS_PROPOSED", "IMPACT_SIMULATED", "DECISION_PROPOSED", "VERDICT_REQUESTED",
  "ACTION_REFUSED", "APPROVAL_REQUESTED", "APPROVAL_GIVEN", "APPROVAL_DENIED", "APPROVAL_EXPIRED", "ACTION_RELEASED",
  "ACTION_EXECUTED", "ACTION_FAILED", "OUTCOME_OBSERVED", "DECISION_ABANDONED", "SWITCH_SET",
];
const FILTERS = ["event_type", "entity_id", "source", "since", "until", "trace_id", "id_prefix"];
const COLUMNS = [
  { title: "Event", cell: (one) => html`<code><${Text}>${one.event_type}<//></code>` },
  { title: "Entity", cell: (one) => html`<${Text}>${one.entity_id ?? "–"}<//>` },
  { title: "State", cell: (one) => (one.state ? html`<${State} word=${one.state} />`
    : html`<span class="muted">–</span>`), roomy: true },
  { title: "Stored", cell: (one) => html`<${Instant} at=${one.ingested_at} />
    ${one.state && html`<div class="phone"><${State} word=${one.state} /></div>`}`, align: "right" },
  { title: "About", cell: (one) => html`<${Instant} at=${one.occurred_at} absolute />`, wide: true },
  { title: "Rev.", cell: (one) => one.revision || "", align: "right", wide: true },
  { title: "Source", cell: (one) => html`<${Text}>${one.source}<//>`, wide: true },
  { title: "Id", cell: (one) => html`<${Id} value=${one.event_id} />`, wide: true },
];

export function View({ query }) {
  const params = chosen(query, FILTERS);
  const live = useLive("events", params, (one) => one.event_id);
  const filters = html`<${Filtering} query=${query} names=${FILTERS} fields=${[
    { name: "event_type", label: "Event", kind: "select", options: TYPES.includes(query.event_type) || !query.event_type
      ? TYPES : [query.event_type, ...TYPES] },
    { name: "entity_id", label: "Entity" }, { name: "source", label: "Source" },
    { name: "since", label: "Stored since", kind: "instant" },
      { name: "until", label: "Stored before", kind: "instant" },
    { name: "trace_id", label: "Run", kind: "id" }, { name: "id_prefix", label: "Id begins", kind: "id" },
  ]} />`;
  const list = html`
    <${LiveBar} live=${live} path="events" params=${params} name="events" />
    <${Trouble} error=${live.error} retry=${live.poll.reload} />
    ${live.items.length > 0 && html`<${Table} label="Events" columns=${COLUMNS} rows=${live.items}
      keyOf=${(one) => one.event_id}
      current=${query.id} href=${(one) => link("events", { ...params, id: one.event_id })} />`}
    ${!live.items.length && !live.busy && !live.error && html`<${Empty}>No event fits.<//>`}
    <${More} pages=${live} />`;
  return html`${filters}<${Split} title="Event" closeHref=${link("events", params)} list=${list}
    detail=${query.id && html`<${Detail} key=${query.id} id=${query.id} />`} />`;
}
