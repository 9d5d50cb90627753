/** Saves a list as a file. */
import { api, count, html, useState } from "#kit";

const MOST_EXPORTED = 10000;
const csvCell = (value) => {
  const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value)
    : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}`
    : text; // no formula in a spreadsheet
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
export function asCsv(items) {
  const names = [...new Set(items.flatMap(Object.keys))];
  const rows = [names, ...items.map((item) => names.map((name) => item[name]))];
  return `${rows.map((row) => row.map(csvCell).join(",")).join("\r\n")}\r\n`;
}
/** Saves the list as it is filtered, up to 10,000 rows. */
export function Export({ path, params, name }) {
  const [state, setState] = useState({ busy: false, error: null, said: "" });
  const save = async (kind) => {
    if (state.busy) return;
    setState({ busy: true, error: null, said: "Reading …" });
    try {
      const items = [];
      let after;
      do {
        const page = await api("GET", path, { params: { ...params, limit: 200, after } });
        items.push(...page.items);
        after = page.next;
      } while (after && items.length < MOST_EXPORTED);
      const [text, type] = kind === "csv" ? [asCsv(items), "text/csv"]
        : [JSON.stringify(items, null, 2), "application/json"];
      const a = Object.assign(document.createElement("a"),
        { href: URL.createObjectURL(new Blob([text], { type })), download: `${name}.${kind}` });
      a.click();
      setTimeout(() => URL.revokeObjectURL(a.href), 10000);
      setState({ busy: false, error: null, said: `${count(items.length)} rows${after ? ", the first ones" : ""}` });
    } catch (error) { setState({ busy: false, error, said: "" }); }
  };
  return html`<span class="export"><span class="muted" role="status">${state.error ? state.error.message
    : state.said}</span>
    ${["json", "csv"].map((kind) => html`<button type="button" aria-disabled=${state.busy}
      onClick=${() => save(kind)}>${kind.toUpperCase()}</button>`)}</span>`;
}
