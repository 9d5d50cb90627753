/** What every view is made of: the API's client, polling, the router's state, and components. */
import { h } from "preact";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import htm from "htm";

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };
export const html = htm.bind(h);

/* State that several components share. */

function store(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set: (next) => { value = next; listeners.forEach((tell) => tell(next)); },
    listen: (tell) => { listeners.add(tell); return () => listeners.delete(tell); },
  };
}
export function useStore(shared) {
  const [value, setValue] = useState(shared.get());
  useEffect(() => { setValue(shared.get()); return shared.listen(setValue); }, [shared]);
  return value;
}
function kept(storage, name) {
  const read = () => { try { return storage().getItem(name); } catch { return null; } };
  const shared = store(read());
  const set = (value) => {
    try { if (value === null) storage().removeItem(name); else storage().setItem(name,
      value); } catch { /* not kept */ }
    shared.set(value);
  };
  return { ...shared, set };
}
export const theme = kept(() => localStorage, "acp.theme"); // light, dark, or null for the system's
export const utc = kept(() => localStorage, "acp.utc"); // "1" or null
export const token = kept(() => sessionStorage, "acp.token");
export const farewell = store(""); // why one was signed out
export const trouble = store(null); // the Problem while the API does not answer
export const newerRelease = store(false);
const who = kept(() => sessionStorage, "acp.who");

export const session = {
  get token() { return token.get(); }, get name() { return whoami().name; },
  get scopes() { return whoami().scopes; }, get expires_at() { return whoami().expires_at; },
};
const whoami = () => JSON.parse(who.get() ?? "null") ?? { name: "", scopes: [], expires_at: null };
export const may = (scope) => session.scopes.includes(scope);
export function useSession() { useStore(who); return session; }
export function signIn(text) { who.set(null); farewell.set(""); token.set(text); }
export function signOut(why = "") { who.set(null); farewell.set(why); token.set(null); }

let asking = false;
export async function loadSession() {
  if (who.get() !== null || asking || !session.token) return;
  asking = true;
  const asked = session.token;
  try {
    const found = JSON.stringify(await api("GET", "whoami"));
    if (session.token === asked) who.set(found); // one may have signed out meanwhile
  } catch { /* the next answer tries again */ }
  asking = false;
}

/* The API. */

export class Problem extends Error {
  constructor({ status = 0, title = "", detail = "", code = "" }) {
    super(detail || title);
    Object.assign(this, { status, title, detail, code });
  }
}
const RELEASE = document.querySelector("meta[name=release]")?.content;
const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const MAY_PASS = new Set([0, 502, 503, 504]);
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2,
  "0")).join("");

/** Asks the API: `path` is relative to it, such as `events/ID`. A change that is not answered is sent again. */
export async function api(method, path, { params, body, key = newKey(), signal } = {}) {
  const pauses = method === "GET" ? [] : [1, 3];
  for (;;) {
    try { return await ask(method, path, params, body, key, signal); } catch (error) {
      if (!(error instanceof Problem) || !MAY_PASS.has(error.status) || !pauses.length) throw error;
      await wait(pauses.shift());
    }
  }
}
async function ask(method, path, params, body, key, signal) {
  const asked = session.token;
  const headers = { Accept: "application/json", Authorization: `Bearer ${asked}` };
  if (method !== "GET") headers["Idempotency-Key"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit" };
  let answer, text;
  try {
    answer = await fetch(path + queryText(params), sent);
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw failed(new Problem({ title: "The API cannot be reached", detail: "The API cannot be reached." }));
  }
  const release = answer.headers.get("Acp-Release");
  if (release && RELEASE && release !== RELEASE) newerRelease.set(true);
  let said = null;
  try { said = JSON.parse(text); } catch { /* not ours */ }
  if (answer.ok && said !== null) {
    trouble.set(null);
    if (path !== "whoami") loadSession();
    return said;
  }
  if (answer.status === 401 && session.token === asked) signOut(said?.detail ?? "The token is not valid any more.");
  const ours = said && typeof said.detail === "string";
  if (!ours && [403, 404, 405].includes(answer.status)) {
    throw new Problem({ status: answer.status, title: "No such route",
      detail: "This page and the API are of different releases: reload the page." });
  }
  const { title = answer.statusText, detail = `The API answered ${answer.status}.`, code } = ours ? said : {};
  throw failed(new Problem({ status: answer.status, title, detail, code }));
}
function failed(problem) {
  if (problem.status === 0 || problem.status >= 500 || problem.status === 429) trouble.set(problem);
  return problem;
}
function queryText(params) {
  const given = Object.entries(params ?? {}).filter(([, value]) => value !== undefined && value !== null
    && value !== "");
  const text = new URLSearchParams(given).toString();
  return text && `?${text}`;
}

/** Reads a path again and again, slower while it fails, not while the page is hidden. A null path reads nothing. */
export function usePoll(path, params, { seconds = 5 } = {}) {
  const asked = JSON.stringify([path, params]);
  const [known, setKnown] = useState({ asked: null });
  const [again, setAgain] = useState(0);
  useLayoutEffect(() => { // before it is painted: the answer comes the sooner
    if (path === null) return undefined;
    let timer, failures = 0;
    const stop = new AbortController();
    const read = async () => {
      clearTimeout(timer);
      if (document.hidden) return;
      try {
        const data = await api("GET", path, { params, signal: stop.signal });
        failures = 0;
        setKnown({ asked, data, at: Date.now(), error: null });
      } catch (error) {
        if (stop.signal.aborted) return;
        failures += 1;
        setKnown((old) => (old.asked === asked ? { ...old, error } : { asked, error }));
      }
      if (!stop.signal.aborted) timer = setTimeout(read, 1000 * Math.min(60, seconds * 2 ** failures));
    };
    read();
    document.addEventListener("visibilitychange", read);
    return () => { stop.abort(); clearTimeout(timer); document.removeEventListener("visibilitychange", read); };
  }, [asked, again]);
  const reload = useCallback(() => setAgain((n) => n + 1), []);
  const { data, error = null, at = null } = known.asked === asked ? known : {};
  return { data, error, at, stale: error !== null && data !== undefined, reload };
}

/** Reads a list page by page. With `seconds`, its first page is read again, and what is new comes first. */
export function usePages(path, params, { seconds = null, keyOf = JSON.stringify } = {}) {
  const asked = JSON.stringify([path, params]);
  const [pages, setPages] = useState({ asked: null, items: [], next: null });
  const [rest, setRest] = useState({ busy: false, error: null });
  const first = usePoll(path, params, { seconds: seconds ?? 1e6 });
  useEffect(() => {
    if (first.data === undefined) return;
    setPages((old) => {
      if (old.asked !== asked || old.next === undefined) return { asked, ...first.data };
      const seen = new Set(first.data.items.map(keyOf));
      const older = old.items.filter((item) => !seen.has(keyOf(item)));
      return old.more ? { ...old, items: [...first.data.items, ...older] } : { asked, ...first.data };
    });
  }, [first.data]);
  const shown = pages.asked === asked ? pages : { items: [], next: null };
  const loadMore = async () => {
    if (rest.busy || shown.next === null) return;
    setRest({ busy: true, error: null });
    try {
      const { items, next } = await api("GET", path, { params: { ...params, after: shown.next } });
      setPages((old) => (old.asked === asked ? { asked, items: [...old.items, ...items], next, more: true } : old));
      setRest({ busy: false, error: null });
    } catch (error) { setRest({ busy: false, error }); }
  };
  const reload = () => { setPages((old) => ({ ...old, more: false })); first.reload(); };
  const busy = rest.busy || (first.data === undefined && first.error === null);
  return { items: shown.items, error: rest.error ?? first.error, busy, more: shown.next !== null, loadMore, reload,
    stale: first.stale, at: first.at };
}

/* The router: the view and its filters are the query string. */

const place = store(location.search);
addEventListener("popstate", () => place.set(location.search));
export function navigate(href, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", href);
  place.set(location.search);
}
export const link = (view, params) => queryText({ view, ...params });
export function useQuery() {
  const search = useStore(place);
  const query = useMemo(() => Object.fromEntries(new URLSearchParams(search)), [search]);
  const setQuery = useCallback((patch, options) => {
    const now = Object.fromEntries(new URLSearchParams(location.search));
    navigate(queryText({ ...now, ...patch }) || "?", options);
  }, []);
  return [query, setQuery];
}

/* Text. */

const UNSEEN = new RegExp("[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u061c\\u200b-\\u200f\\u2028-\\u202e"
  + "\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb]", "g");
/** Returns a text with what cannot be seen, or would turn its direction, written as an escape. */
export const visible = (text) =>
  String(text).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
export const Text = ({ children }) => html`<bdi class="text">${visible(children ?? "")}</bdi>`;
export const Term = ({ children }) => html`<code class="term">${children}</code>`;
const NUMBERS = new Intl.NumberFormat("en");
export const count = (number) => (number === null || number === undefined ? "–" : NUMBERS.format(number));
const MONEY = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const LARGE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
/** Returns an amount, given in millionths, as people write it. */
export const money = (micros) => (micros === null || micros === undefined ? "–"
  : (Math.abs(micros) < 1e9 ? MONEY : LARGE).format(micros / 1e6));
/** Returns what something cost, given in millionths of a US dollar, to the last digit. */
export const usd = (micros) => (micros ? `$${(micros / 1e6).toFixed(6).replace(/\.?0+$/, "")}` : "$0");
export const short = (id) => (
  /^[0-9a-f]{8}-/.test(id) ? id.slice(0, 8) : id.length > 20 ? `${id.slice(0, 12)}…` : id);

export function spoken(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.abs(seconds);
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s < 600 && s % 60 >= 1 ? ` ${Math.floor(s % 60)} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h${s % 3600 >= 60 ? ` ${Math.floor((s % 3600) / 60)} min` : ""}`;
  return `${NUMBERS.format(Math.floor(s / 86400))} d${s < 864000 && s % 86400 >= 3600
    ? ` ${Math.floor((s % 86400) / 3600)} h` : ""}`;
}
const coarse = (s) => (s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min`
  : s < 86400 ? `${Math.floor(s / 3600)} h` : `${NUMBERS.format(Math.floor(s / 86400))} d`);
export const Duration = ({ seconds }) => html`<span class="number">${spoken(seconds)}</span>`;
export const Age = ({ seconds }) =>
  html`<span class="number" title=${spoken(seconds)}>${seconds === null || seconds === undefined ? "–"
    : coarse(Math.max(0, seconds))}</span>`;

const ticks = store(Date.now());
setInterval(() => document.hidden || ticks.set(Date.now()), 1000);
export const useNow = () => useStore(ticks);
export function exact(at, inUtc = utc.get() === "1") {
  const date = new Date(at);
  const there = new Date(date.getTime() - (inUtc ? 0 : date.getTimezoneOffset() * 60000)).toISOString();
  return `${there.slice(0, 10)} ${there.slice(11, 23)}${inUtc ? " UTC" : ""}`;
}
function ago(at) {
  const seconds = (Date.now() - new Date(at).getTime()) / 1000;
  return seconds < -1 ? `in ${coarse(-seconds)}` : seconds < 1 ? "now" : `${coarse(seconds)} ago`;
}
/** A time: how long ago, or with `absolute` when; the other, and UTC, on hover. It is drawn when its words change. */
export function Instant({ at, absolute = false }) {
  const [told, setTold] = useState(ago(at));
  const inUtc = useStore(utc) === "1";
  useEffect(() => { setTold(ago(at)); return ticks.listen(() => setTold(ago(at))); }, [at]);
  if (!at) return html`<span class="muted">–</span>`;
  const title = `${inUtc ? exact(at, true) : `${exact(at, false)} local, ${exact(at, true)}`}`;
  return html`<time class="number" datetime=${at} title=${absolute ? `${told}; ${title}` : title}>
    ${absolute ? exact(at, inUtc).replace(/\.000/, "") : told}</time>`;
}

/* States: an icon, a word and a colour. */

const TONES = {
  good: "delivered done closed processed executed approved scored ok on valid observed detected succeeded accepted"
    + " active",
  wait: "pending planning planned opened gathering hypothesising scoring simulating proposed observing released queued"
    + " running claimed in_flight asked",
  warn: "retrying half_open awaiting_approval paused degraded expired stalled held expiring withdrawn leased refused"
    + " denied",
  bad: "dead dead_lettered failed open abandoned off revoked unobservable error rejected down",
};
const TONE = Object.fromEntries(Object.entries(TONES).flatMap(([tone, words]) => words.split(" ").map((w) => [w,
  tone])));
const ICONS = {
  good: "M3 8.5l3.2 3.2L13 5",
  wait: "M8 4.2V8l2.6 1.6M8 1.8a6.2 6.2 0 1 0 .01 0",
  warn: "M8 5.5v3.6M8 11.6v.1M8 1.8 14.6 13.6H1.4z",
  bad: "M4 4l8 8M12 4l-8 8",
  idle: "M3.5 8h9",
};
export const Icon = ({ tone }) =>
  html`<svg class=${`icon ${tone}`} viewBox="0 0 16 16" aria-hidden="true"><path d=${ICONS[tone]} /></svg>`;
export function State({ word, tone = TONE[word] ?? "idle" }) {
  return html`<span class=${`state ${tone}`}><${Icon} tone=${tone} />${visible(word).replaceAll("_", " ")}</span>`;
}

/** An id: short, whole on hover, copyable, and with `view` a link to it. */
export function Id({ value, view, param = "id" }) {
  const [copied, setCopied] = useState(false);
  if (!value) return html`<span class="muted">–</span>`;
  const copy = async (event) => {
    event.preventDefault();
    try { await navigator.clipboard.writeText(value); setCopied(true); setTimeout(() => setCopied(false),
      1500); } catch { /* no clipboard */ }
  };
  const text = html`<code>${visible(short(value))}</code>`;
  return html`<span class="id" title=${value}>
    ${view ? html`<a href=${link(view, { [param]: value })}>${text}</a>` : text}
    <button type="button" class="copy" aria-label=${copied ? "Copied" : `Copy ${value}`} onClick=${copy}>
      <svg viewBox="0 0 16 16" aria-hidden="true"><path d=${copied ? ICONS.good
        : "M6 5h7v8.5H6zM10 5V2.5H3V11h3"} /></svg>
    </button></span>`;
}
export function Json({ value, label = "JSON" }) {
  const text = visible(JSON.stringify(value, null, 2) ?? "");
  const lines = text.split("\n").length;
  const whole = html`<pre class="json" tabindex="0" role="region" aria-label=${label}>${text}</pre>`;
  return lines <= 24 && text.length < 4000 ? whole
    : html`<details class="fold"><summary>${count(lines)} lines, ${count(text.length)} characters</summary>
      ${whole}</details>`;
}

/* Lists. */
/** A dense table. With `href`, a row's first cell is a link over the row; j and k move between them. */
export function Table({ columns, rows, keyOf = (_, n) => n, href, label, current }) {
  const classOf = ({ align, wide, roomy }) => [align === "right" && "right", wide && "wide", roomy
    && "roomy"].filter(Boolean).join(" ") || undefined;
  return html`<div class="scroll" tabindex=${href ? undefined : 0} role="group" aria-label=${label}><table>
    <caption class="hidden">${label}</caption>
    <colgroup>${columns.map((one) => html`<col width=${one.width} class=${classOf(one)} />`)}</colgroup>
    <thead><tr>${columns.map((one) => html`<th scope="col" class=${classOf(one)}>${one.title}</th>`)}</tr></thead>
    <tbody>${rows.map((row, n) => {
      const key = keyOf(row, n);
      const there = current !== undefined && key === current;
      return html`<tr key=${key} class=${there ? "current"
        : undefined}>${columns.map((one, c) => html`<td class=${classOf(one)}>${
        c === 0 && href ? html`<a class="row" href=${href(row)} aria-current=${there ? "true"
          : undefined}>${one.cell(row)}</a>` : one.cell(row)}</td>`)}</tr>`;
    })}</tbody></table></div>`;
}
/** A list and, beside it or on a narrow screen in its place, what is open of it. Closed, its row has the focus. */
export function Split({ list, detail, title, closeHref }) {
  const listed = useRef(), pane = useRef(), opener = useRef(null);
  const isOpen = Boolean(detail);
  const focused = document.activeElement; // while it is drawn, before what is closed takes the focus along
  useLayoutEffect(() => {
    if (isOpen) {
      if (listed.current.contains(focused)) opener.current = focused;
      if (!listed.current.checkVisibility()) pane.current.focus();
    } else if (document.activeElement === document.body) opener.current?.focus();
  }, [isOpen]);
  useLayoutEffect(() => {
    opener.current = listed.current.querySelector("a.row[aria-current]") ?? opener.current;
  });
  return html`<div class=${isOpen ? "split open" : "split"}><div class="list" ref=${listed}>${list}</div>
    ${isOpen && html`<section class="pane" aria-label=${title} tabindex="-1" ref=${pane}><header><h2>${title}</h2>
      <a class="button" data-close href=${closeHref}>Close</a></header>${detail}</section>`}</div>`;
}
function forInput(at, inUtc) {
  const date = at ? new Date(at) : null;
  return date === null || Number.isNaN(date.getTime()) ? "" : exact(at, inUtc).slice(0, 16).replace(" ", "T");
}
/** Fields that are bound to the query string: a filtered list is a link. */
export function Filters({ fields }) {
  const [query, setQuery] = useQuery();
  const inUtc = useStore(utc) === "1";
  const timer = useRef();
  const set = (name, value, pause = 0) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQuery({ [name]: value }, { replace: true }), pause);
  };
  const input = ({ name, label, kind = "text", options }) => {
    const value = query[name] ?? "";
    if (kind === "select") {
      return html`<select onChange=${(event) => set(name, event.target.value)}>
        <option value="" selected=${value === ""}>any</option>
        ${options.map((one) => html`<option value=${one.value ?? one} selected=${(one.value ?? one) === value}>
          ${one.label ?? String(one).replaceAll("_", " ")}</option>`)}</select>`;
    }
    if (kind === "instant") {
      const change = (event) => set(name, event.target.value
        && new Date(event.target.value + (inUtc ? "Z" : "")).toISOString());
      return html`<input type="datetime-local" value=${forInput(value, inUtc)} onChange=${change} />`;
    }
    return html`<input type="search" class=${kind} value=${value} autocomplete="off" spellcheck=${false} maxlength="200"
      aria-label=${label} onInput=${(event) => set(name, event.target.value.trim(), 300)} />`;
  };
  const filled = fields.filter(({ name }) => query[name]);
  return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
    ${fields.map((field) => html`<label key=${field.name}><span>${field.label}</span>${input(field)}</label>`)}
    ${filled.length > 0 && html`<button type="button" onClick=${() =>
      setQuery(Object.fromEntries(filled.map(({ name }) => [name, undefined])))}>Clear</button>`}</form>`;
}
export const More = ({ pages }) => html`<p class="more">
  ${pages.more ? html`<button type="button" aria-disabled=${pages.busy} onClick=${pages.loadMore}>Show more</button>`
    : null}
  <span class="muted">${pages.busy ? "Reading …" : `${count(pages.items.length)} shown${pages.more ? ""
    : ", which is all"}`}</span></p>`;
export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;
export const Trouble = ({ error, retry }) => error && html`<div class="trouble" role="alert"><${Icon} tone="bad" />
  <p><strong>${visible(error.title || "It did not work")}.</strong> ${error.detail !== error.title
    && visible(error.detail || error.message)}</p>
  ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}</div>`;
export function Stale({ poll }) {
  const now = useNow();
  return html`<span class=${poll.stale ? "stale" : "stale fresh"}>${poll.at === null ? "" : poll.stale
    ? `not up to date: read ${coarse((now - poll.at) / 1000)} ago` : "live"}</span>`;
}
export const Tabs = ({ tabs, current, href, label = "Parts" }) => html`<nav class="tabs" aria-label=${label}>
  ${tabs.map(({ name, title }) => html`<a href=${href(name)} aria-current=${name === current ? "page"
    : undefined}>${title}</a>`)}</nav>`;

/* Pictures, each of which is also said. */

export function Sparkline({ values, label, tone = "" }) {
  const most = Math.max(1, ...values);
  const points = values.map((value, n) => `${n},${(23 - (22 * value) / most).toFixed(1)}`).join("L");
  const total = values.reduce((sum, value) => sum + value, 0);
  const said = `${label}: ${count(total)} in ${values.length} minutes, at most ${count(Math.max(0,
    ...values))} a minute, ${count(values.at(-1) ?? 0)} in the last`;
  return html`<svg class=${`spark ${tone}`} viewBox=${`0 0 ${Math.max(1, values.length - 1)} 24`}
    preserveAspectRatio="none" role="img" aria-label=${said}>
    <title>${said}</title><path class="fill" d=${`M0,23.5L${points}L${values.length - 1},23.5Z`} />
      <path d=${`M${points}`} /></svg>`;
}
export const Bar = ({ done, total, label = "Progress" }) => html`<span class="bar">
  <progress max=${total || 1} value=${total ? done : 0} aria-label=${label}></progress>
  <span class="number">${count(done)}${total === null || total === undefined ? ""
    : ` of ${count(total)}`}</span></span>`;
