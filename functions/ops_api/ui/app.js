/** The shell: signing in, navigation, keys, and the view that the query string names. */
import { Component, render } from "preact";
import {
  Trouble, farewell, html, link, loadSession, navigate, newerRelease, signIn, signOut, theme, token, trouble, useEffect,
  useLayoutEffect, useQuery, useRef, useSession, useState, useStore, utc, visible,
} from "#kit";

/** The menu: a view's name, which its module has, too, and its title. */
const VIEWS = [
  ["flow", "Flow"], ["events", "Events"], ["decisions", "Decisions"], ["approvals", "Approvals"],
  ["letters", "Dead letters"], ["operations", "Operations"], ["switches", "Switches"], ["audit", "Audit"],
];
/** Views that no menu has, and the list that each belongs to. */
const DETAILS = { event: "events", decision: "decisions" };
const KEYS = [
  ["/", "go to the first filter"], ["j  k", "next and previous row"], ["Enter", "open the row"],
  ["Esc", "close what is open"], ["?", "this help"],
  ["g and a letter", "go to a view: its first letter; l for dead letters, u for the audit"],
];

/** The token comes in the fragment, which is never sent, and leaves the address at once. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  signIn(given.trim());
}

function SignIn() {
  const why = useStore(farewell);
  const field = useRef();
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    const given = new FormData(event.target).get("token").trim();
    if (given) signIn(given);
  };
  return html`<main class="signin"><form onSubmit=${submit}>
    <h1>AI Control Plane</h1>
    ${why && html`<p role="alert">${visible(why)}</p>`}
    <label class="field"><span>Token</span>
      <input ref=${field} name="token" type="password" autocomplete="off" required spellcheck=${false} /></label>
    <button class="primary">Sign in</button>
    <p class="muted"><code>acp page</code> prints this page's address with a token of its own. The token stays in${" "}
      this tab, and is forgotten when the tab is closed.</p></form></main>`;
}

const THEMES = { light: "Light", dark: "Dark" };
function skip(event) {
  event.preventDefault();
  document.querySelector("main")?.focus();
}

function Header({ view }) {
  const { name } = useSession();
  const chosen = useStore(theme);
  const inUtc = useStore(utc) === "1";
  const current = useRef();
  useEffect(() => current.current?.scrollIntoView({ block: "nearest", inline: "center" }), [view]);
  const next = { null: "dark", dark: "light", light: null }[chosen];
  return html`<header class="top">
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <a class="brand" href=${link("flow")}>AI Control Plane</a>
    <nav aria-label="Views">${VIEWS.map(([one, title]) => html`<a key=${one} href=${link(one)}
      ref=${one === view ? current : undefined} aria-current=${one === view ? "page" : undefined}>${title}</a>`)}</nav>
    <div class="tools">${name && html`<span class="who" title=${`Signed in as ${name}`}>${visible(name)}</span>`}
      <button type="button" aria-pressed=${inUtc} onClick=${() => utc.set(inUtc ? null : "1")}
        title="Show times in UTC">UTC</button>
      <button type="button" onClick=${() => theme.set(next)} aria-label=${`Theme: ${THEMES[chosen] ?? "Auto"}`}
        title="Dark, light, or as the system">${THEMES[chosen] ?? "Auto"}</button>
      <button type="button" onClick=${() => signOut()}>Sign out</button>
    </div></header>`;
}

function Banners() {
  const problem = useStore(trouble);
  const isOld = useStore(newerRelease);
  return html`<div class="banners" role="status">
    ${problem && html`<p class="banner">${visible(problem.detail)} What is shown may be old; it is asked again.</p>`}
    ${isOld && html`<p class="banner">There is a newer release of this page.
      <button type="button" class="primary" onClick=${() => location.reload()}>Reload</button></p>`}</div>`;
}

function Help({ onClose }) {
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} aria-label="Keys" onClose=${onClose}><form method="dialog"><h2>Keys</h2>
    <dl class="keys">${KEYS.map(([keys, what]) => html`<dt><kbd>${keys}</kbd></dt><dd>${what}</dd>`)}</dl>
    <footer><button class="primary" autofocus>Close</button></footer></form></dialog>`;
}

function useView(name) {
  const [loaded, setLoaded] = useState({});
  useLayoutEffect(() => { // before it is painted: what it loads comes the sooner
    let wanted = true;
    const known = DETAILS[name] ?? VIEWS.some(([one]) => one === name);
    const problem = { title: "This part of the page is not there", detail: known
      ? "It could not be loaded: a newer release may have replaced it. Reload the page."
      : "The address names no view of this page: choose one above." };
    (known ? import(`#views/${name}`) : Promise.reject()).then(
      (module) => wanted && setLoaded({ name, module }), () => wanted && setLoaded({ name, problem }));
    return () => { wanted = false; };
  }, [name]);
  return loaded.name === name ? loaded : {};
}

/** Shows a sentence in the place of a view that cannot show what it was answered. */
class Guard extends Component {
  componentDidCatch(error) {
    reportError(error);
    this.setState({ error });
  }
  render({ children }, { error }) {
    const problem = { title: "This part of the page failed",
      detail: "The page and the API may be of different releases: reload the page." };
    return error ? html`<${Trouble} error=${problem} retry=${() => location.reload()} />` : children;
  }
}

function Main({ view, query }) {
  const { module, problem } = useView(view);
  const main = useRef();
  const shown = useRef(view);
  useEffect(() => {
    document.title = `${module?.title ? `${module.title} · ` : ""}AI Control Plane`;
    if (module && shown.current !== view) { shown.current = view; main.current.focus(); }
  }, [module]);
  return html`<main id="main" tabindex="-1" ref=${main}>
    ${problem && html`<${Trouble} error=${problem} retry=${() => location.reload()} />`}
    ${module && html`<h1 class="hidden">${module.title}</h1>
      <${Guard} key=${view}><${module.View} query=${query} /><//>`}</main>`;
}

function moveRow(step) {
  const rows = [...document.querySelectorAll("a.row")];
  const now = rows.indexOf(document.activeElement);
  const from = now >= 0 ? now : rows.findIndex((row) => row.getAttribute("aria-current"));
  rows[Math.max(0, Math.min(rows.length - 1, from < 0 ? 0 : from + step))]?.focus();
}
/** The letters that follow g. */
const LETTERS = Object.fromEntries(VIEWS.map(([name]) => [name === "audit" ? "u" : name[0], name]));

function useKeys(showHelp) {
  useEffect(() => {
    let leading = -Infinity;
    const onKey = (event) => {
      const typing = event.target.closest("input, select, textarea, dialog");
      if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
      const goes = event.timeStamp - leading < 1500 && LETTERS[event.key];
      const leave = () => (typing ? !typing.closest("dialog") && typing.blur()
        : document.querySelector("[data-close]")?.click());
      const done = goes ? () => navigate(link(goes)) : {
        "/": () => document.querySelector(".filters input, .filters select")?.focus(),
        j: () => moveRow(1), k: () => moveRow(-1), "?": showHelp, g: () => { leading = event.timeStamp; },
        Escape: leave,
      }[event.key];
      if (goes) leading = -Infinity;
      if (!done) return;
      if (event.key !== "Escape") event.preventDefault();
      done();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
}

function App() {
  const [query] = useQuery();
  const signedIn = useStore(token) !== null;
  const chosen = useStore(theme);
  const [help, setHelp] = useState(false);
  useKeys(() => setHelp(true));
  useEffect(() => { document.documentElement.dataset.theme = chosen ?? "auto"; }, [chosen]);
  useEffect(() => {
    const timer = signedIn && setTimeout(loadSession, 2000); // a view that asks nothing tells nobody who one is
    return () => clearTimeout(timer);
  }, [signedIn]);
  if (!signedIn) return html`<${SignIn} />`;
  const view = query.view ?? "flow";
  return html`<${Header} view=${DETAILS[view] ?? view} /><${Main} view=${view} query=${query} /><${Banners} />
    ${help && html`<${Help} onClose=${() => setHelp(false)} />`}`;
}

/**
 * Keeps the focus on the page. What has it may be taken away by what was done: a button, a row, a dialog's opener. Then
 * it goes to what is left of the same group of controls, or to the part of the page that held it.
 */
const GROUPS = ".acts, .buttons, .filters";
const CONTROLS = "a[href], button, input, select, [tabindex='0']";
const PARTS = "[tabindex], section, main";
function keepFocus(within) {
  let held = []; // what has the focus, and all that is around it, outwards
  const isThere = (element) => element.isConnected && element.checkVisibility() && !element.disabled;
  const keep = () => {
    const now = document.activeElement;
    if (!held.length || isThere(held[0]) || (now !== document.body && now !== held[0])) return;
    for (const one of [...held.filter(isThere), document.querySelector("main")]) {
      const control = one?.matches(GROUPS) && [...one.querySelectorAll(CONTROLS)].find(isThere);
      if (!control && !one?.matches(PARTS)) continue;
      if (!control && !one.hasAttribute("tabindex")) one.tabIndex = -1;
      (control || one).focus({ preventScroll: true });
      return;
    }
  };
  addEventListener("focusin", ({ target }) => {
    held = [];
    for (let one = target; one && one !== within; one = one.parentElement) held.push(one);
  });
  addEventListener("click", () => { if (document.activeElement === document.body) held = []; }, true);
  const seen = { childList: true, subtree: true, attributes: true, attributeFilter: ["class", "disabled", "open"] };
  new MutationObserver(keep).observe(within, seen);
}

addEventListener("hashchange", takeToken);
document.addEventListener("click", (event) => {
  const a = event.target.closest?.("a[href]");
  const opensElsewhere = event.button || event.ctrlKey || event.metaKey || event.shiftKey || a?.target;
  if (!a?.getAttribute("href").startsWith("?") || event.defaultPrevented || opensElsewhere) return;
  event.preventDefault();
  navigate(a.getAttribute("href"));
});
takeToken();
const root = document.getElementById("app");
root.textContent = "";
keepFocus(root);
render(html`<${App} />`, root);
