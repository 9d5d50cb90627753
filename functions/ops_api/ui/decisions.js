/** The list of decisions: live, filtered by the query string, with the chosen one's record beside it. */
import { Duration, Empty, Id, Instant, More, Split, State, Table, Text, Trouble, html, link, usd } from "#kit";
import { Detail } from "#views/decision";
import { Filtering, LiveBar, chosen, useLive } from "#views/events";

export const title = "Decisions";

const STATES = [
  "opened", "gathering", "hypothesising", "scoring", "simulating", "proposed", "refused", "awaiting_approval",
    "approved", "denied",
  "expired", "released", "executed", "failed", "observing", "scored", "abandoned", "recorded",
];
const FILTERS = ["state", "entity_id", "playbook", "since", "until", "event_id", "id_prefix"];
/** What is done or proposed, and who said yes or no to it. An older API tells of what is done alone. */
function action({ action_type: done, proposed_type: proposed, answer }) {
  if (!done && !proposed) return null;
  const answered = answer ? `, ${answer.is_given ? "approved" : "denied"} by ${answer.decided_by}` : "";
  return html`<div class="muted"><${Text}>${`${done ?? proposed}${answered}`}<//></div>`;
}
const COLUMNS = [
  { title: "About", cell: (one) => html`<${Text}>${one.entity_id}<//> <span class="muted">
    <${Text}>${one.anomaly_kind}<//></span>` },
  { title: "State", cell: (one) => html`<${State} word=${one.state} />${one.is_shadow
    && html` <span class="muted">shadow</span>`}
    ${action(one)}` },
  { title: "Opened", cell: (one) => html`<${Instant} at=${one.opened_at} />`, align: "right" },
  { title: "Took", align: "right", wide: true,
    cell: (one) => (one.closed_at ? html`<${Duration}
      seconds=${(Date.parse(one.closed_at) - Date.parse(one.opened_at)) / 1000} />` : "–") },
  { title: "Agents cost", cell: (one) => usd(one.cost_micros), align: "right", wide: true },
  { title: "Steps", cell: (one) => one.steps, align: "right", wide: true },
  { title: "Playbook", cell: (one) => html`<${Text}>${one.playbook}<//>`, wide: true },
  { title: "Id", cell: (one) => html`<${Id} value=${one.decision_id} />`, wide: true },
];

export function View({ query }) {
  const params = chosen(query, FILTERS);
  const live = useLive("decisions", params, (one) => one.decision_id);
  const filters = html`<${Filtering} query=${query} names=${FILTERS} fields=${[
    { name: "state", label: "State", kind: "select", options: STATES }, { name: "entity_id", label: "Entity" },
      { name: "playbook", label: "Playbook" },
    { name: "since", label: "Opened since", kind: "instant" },
      { name: "until", label: "Opened before", kind: "instant" },
    { name: "event_id", label: "Event", kind: "id" }, { name: "id_prefix", label: "Id begins", kind: "id" },
  ]} />`;
  const list = html`
    <${LiveBar} live=${live} path="decisions" params=${params} name="decisions" />
    <${Trouble} error=${live.error} retry=${live.poll.reload} />
    ${live.items.length > 0 && html`<${Table} label="Decisions" columns=${COLUMNS} rows=${live.items}
      keyOf=${(one) => one.decision_id}
      current=${query.id} href=${(one) => link("decisions", { ...params, id: one.decision_id })} />`}
    ${!live.items.length && !live.busy && !live.error
      && html`<${Empty}>${Object.keys(params).length ? "No decision fits."
    : html`No decision yet: something unusual opens one. <a href=${link("events",
      { event_type: "ANOMALY_DETECTED" })}>What was unusual</a>`}<//>`}
    <${More} pages=${live} />`;
  return html`${filters}<${Split} title="Decision" closeHref=${link("decisions", params)} list=${list}
    detail=${query.id && html`<${Detail} key=${query.id} id=${query.id} />`} />`;
}
