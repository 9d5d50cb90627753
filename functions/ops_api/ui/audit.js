/** The audit: who changed what by the API, when, from where and why. */
import {
  Empty, Filters, Id, Instant, Json, More, Split, Stale, Table, Text, Trouble, count, html, link, loadSession, session,
  useEffect, usePages, useSession, visible,
} from "#kit";
import { Export } from "#views/export";
import { Clock, Facts, Name, lacking } from "#views/operating";

export const title = "Audit";

export function View({ query }) {
  useSession();
  useEffect(() => { loadSession(); }, []);
  if (!session.name) return html`<p class="muted">Reading …</p>`;
  const why = lacking("admin");
  if (why) {
    return html`<${Empty}>The audit is for admins: ${why}. ${visible(session.name)} has ${session.scopes.join(", ")}.
      Sign out, and sign in
      with an admin's token; or <code>acp audit log</code> shows the same.<//>`;
  }
  return html`<${Audit} query=${query} />`;
}

function Audit({ query }) {
  const params = { token: query.token };
  const pages = usePages("audit", params, { seconds: 10, keyOf: (one) => one.id });
  const here = (more) => link("audit", { ...params, ...more });
  const columns = [
    { title: "When", width: 160, cell: (one) => html`<${Clock} at=${one.at} />` },
    { title: "Token", width: 140, cell: (one) => html`<${Name}>${one.token}<//>` },
    { title: "What", cell: (one) => html`<code class="route">${visible(one.route)}</code>` },
    { title: "On", width: 180, wide: true, cell: (one) => html`<${Name}>${subject(one)}<//>` },
    { title: "Why", wide: true, cell: (one) => html`<span class="cut"><${Text}>${one.reason}<//></span>` },
    { title: "From", width: 130, wide: true, cell: (one) => html`<${Name}>${one.address}<//>` },
  ];
  const row = pages.items.find((one) => String(one.id) === query.id);
  const list = html`
    <${Filters} fields=${[{ name: "token", label: "Token" }]} />
    <div class="acts"><span class="push"><${Stale} poll=${pages} /> <${Export} path="audit" params=${params}
      name="audit" /></span></div>
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0
      ? html`<${Table} label="Audit" columns=${columns} rows=${pages.items} keyOf=${(one) => one.id} current=${row?.id}
          href=${(one) => here({ id: one.id })} /><${More} pages=${pages} />`
      : !pages.busy && !pages.error && html`<${Empty}>${query.token ? "This token changed nothing."
        : "Nothing was changed by the API yet."}<//>`}`;
  const detail = !query.id ? null : row ? html`<${Change} row=${row} />`
    : html`<p class="muted">${pages.busy ? "Reading …" : "It is further down: show more of the list."}</p>`;
  return html`<${Split} list=${list} detail=${detail} title=${`Change ${visible(query.id ?? "")}`}
    closeHref=${here()} />`;
}

/** Returns the name of what was changed, from its state. */
const NAMES = ["name", "scope", "operation_id", "approval_id", "started", "file"];
function subject({ before, after }) {
  const state = { ...before, ...after };
  const name = NAMES.find((one) => state[one]);
  return name ? String(state[name]) : "";
}

const said = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value
  : JSON.stringify(value));

function Change({ row }) {
  const before = row.before ?? {}, after = row.after ?? {};
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  const changed = names.filter((name) => said(before[name]) !== said(after[name]));
  return html`<div class="change-pane">
    <p class="cause"><${Text}>${row.reason}<//></p>
    <${Facts} rows=${[
      ["Route", html`<code>${visible(row.route)}</code>`],
      ["By", html`<a href=${link("audit", { token: row.token })}><${Text}>${row.token}<//></a>`],
      ["When", html`<${Clock} at=${row.at} /> (<${Instant} at=${row.at} />)`],
      ["Address", row.address],
      ["Client", row.agent],
      ["Answer", count(row.status)],
      ["Idempotency key", html`<${Id} value=${row.idempotency_key} />`],
    ]} />
    <h3 class="part">What changed</h3>
    ${changed.length > 0
      ? html`<table class="counts diff"><thead><tr><th scope="col">field</th><th scope="col">before</th>
        <th scope="col">after</th></tr></thead>
          <tbody>${changed.map((name) => html`<tr key=${name}><th scope="row"><${Text}>${name}<//></th>
            <td><${Text}>${said(before[name])}<//></td>
            <td><${Text}>${said(after[name])}<//></td></tr>`)}</tbody></table>`
      : html`<p class="muted">No field that is on record.</p>`}
    ${row.before && html`<h3 class="part">Before</h3><${Json} value=${row.before} label="Before" />`}
    ${row.after && html`<h3 class="part">After</h3><${Json} value=${row.after} label="After" />`}</div>`;
}
