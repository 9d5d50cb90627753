/** Switches, what may pass to subscriptions and sources, and tokens. */
import {
  Duration, Empty, Instant, More, Stale, State, Table, Text, Trouble, api, html, link, session, useEffect, usePages,
  useRef, usePoll, useSession, useState, utc, visible,
} from "#kit";
import { Act, Asked, Confirm, Lacking, Name, lacking } from "#views/operating";

export const title = "Switches";

/** What each kind of scope stops once it is off. */
const STOPS = {
  all: "Every action: none is released or executed. Decisions that are not released yet are abandoned.",
  domain: "Every action of this domain. Its decisions that are not released yet are abandoned.",
  playbook: "Every action of this playbook's decisions; those that are not released yet are abandoned.",
  action: "Every action of this type, at its release and again at its execution.",
  agent: "This agent is not asked, and no action rests on its answers: such are refused. The answers stay on record.",
  model: "This model is not asked, and no action rests on its answers: such are refused. The answers stay on record.",
};
const kindOf = (scope) => scope.split(":", 1)[0];
/** A name may hold a slash, which a gateway would decode. */
const nameIn = (path) => encodeURIComponent(encodeURIComponent(path));

export function View() {
  const [asked, ask] = useState(null);
  return html`<div class="stack"><${Switches} ask=${ask} /><${Passing} ask=${ask} /><${Tokens} ask=${ask} />
    <${Asked} what=${asked} onClose=${() => ask(null)} /></div>`;
}

/* Switches */

function Switches({ ask }) {
  const pages = usePages("switches", undefined, { seconds: 5, keyOf: (one) => one.scope });
  const chosen = useRef({ scope: "all" });
  const set = (scope, isOff) => async ({ reason, key }) => {
    await api("PUT", `switches/${nameIn(scope())}`, { body: { is_off: isOff, reason }, key });
    pages.reload();
  };
  const switchOff = () => {
    chosen.current = { scope: "all" };
    ask({ title: "Switch off what?", verb: "Switch off", danger: true, text: html`<${Scope} into=${chosen} />`,
      run: set(() => chosen.current.scope, true) });
  };
  const change = ({ scope, is_off: isOff }) => ask({ title: `Switch ${visible(scope)} ${isOff ? "on" : "off"}?`,
    verb: isOff ? "Switch on" : "Switch off", danger: !isOff, run: set(() => scope, !isOff),
    text: html`<p>${isOff ? "What it held back may be released again, as far as policy and time allow."
      : STOPS[kindOf(scope)]}</p>` });
  const columns = [
    { title: "State", width: 90, cell: (one) => html`<${State} word=${one.is_off ? "off" : "on"} />` },
    { title: "Scope", width: 230, cell: (one) => html`<code><${Name}>${one.scope}<//></code>` },
    { title: "It stops", width: 360, wide: true, cell: (one) => STOPS[kindOf(one.scope)] },
    { title: "Since", width: 100, wide: true, cell: (one) => html`<${Instant} at=${one.set_at} />` },
    { title: "By", width: 130, wide: true, cell: (one) => html`<${Name}>${one.set_by}<//>` },
    { title: "Why", wide: true, cell: (one) => html`<span class="cut"><${Text}>${one.reason}<//></span>` },
    { title: html`<span class="hidden">To do</span>`, width: 120,
      cell: (one) => html`<${Act} scope="operate" kind=${one.is_off ? "primary small" : "small"}
        aria-label=${`Switch ${visible(one.scope)} ${one.is_off ? "on" : "off"}`}
          onClick=${() => change(one)}>Switch ${one.is_off ? "on" : "off"} …<//>` },
  ];
  return html`<section aria-labelledby="switches"><header class="section-head"><h2 id="switches">Switches</h2>
      <${Act} scope="operate" kind="danger" onClick=${switchOff}>Switch off …<//><span class="push">
        <${Stale} poll=${pages} /></span></header>
    <${Lacking} scope="operate" what="switch, hold or resume" />
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0 ? html`<${Table} label="Switches" columns=${columns} rows=${pages.items}
      keyOf=${(one) => one.scope} />
        ${pages.more && html`<${More} pages=${pages} />`}`
      : !pages.busy && !pages.error && html`<${Empty}>Nothing was ever switched off: all may act.<//>`}</section>`;
}

/** Chooses a scope; the names that decisions show are offered. */
function Scope({ into }) {
  const [kind, setKind] = useState("all");
  const decisions = usePoll("decisions", { limit: 200 }, { seconds: 600 }).data?.items ?? [];
  const field = { domain: "domain", playbook: "playbook", action: "action_type" }[kind];
  const names = field ? [...new Set(decisions.map((one) => one[field]).filter(Boolean))] : [];
  const choose = (next, name) => { setKind(next); into.current.scope = next === "all" ? "all" : `${next}:${name}`; };
  return html`<label class="field"><span>What</span><select autofocus
    onChange=${(event) => choose(event.target.value, "")}>
      ${Object.keys(STOPS).map((one) => html`<option value=${one} selected=${one === kind}>${one === "all"
        ? "everything" : `one ${one}`}</option>`)}
    </select></label>
    ${kind !== "all" && html`<label class="field" key=${kind}><span>Name of the ${kind}</span><input name="scope"
      required list="known-names" maxlength="122" autocomplete="off"
      spellcheck=${false} pattern="[A-Za-z0-9_.:\\/\\-]+"
        onInput=${(event) => choose(kind, event.target.value.trim())} /></label>
      <datalist id="known-names">${names.map((one) => html`<option value=${one} />`)}</datalist>`}
    <p class="stops"><strong>It stops:</strong> ${STOPS[kind]}</p>`;
}

/* Subscriptions and sources, and their breakers */

/** Returns what has, or may have, a breaker: subscriptions that are active, then breakers of their own. */
function guarded(subscriptions, breakers) {
  const stored = new Map(breakers.map((one) => [one.name, one]));
  const rows = subscriptions.map((one) => ({ ...one, kind: "subscription", ...stored.get(one.name),
    removed_at: one.removed_at,
    state: stored.get(one.name)?.state ?? one.breaker }));
  const known = new Set(subscriptions.map((one) => one.name));
  const others = breakers.filter((one) => !known.has(one.name)).map((one) => ({ ...one, kind: "source" }));
  return [...rows, ...others].filter((one) => !one.removed_at || one.state !== "closed");
}

function Passing({ ask }) {
  const subscriptions = usePages("subscriptions", { limit: 200 }, { seconds: 10, keyOf: (one) => one.name });
  const breakers = usePages("breakers", { limit: 200 }, { seconds: 5, keyOf: (one) => one.name });
  const rows = guarded(subscriptions.items, breakers.items);
  const name = useRef("");
  const reload = () => { subscriptions.reload(); breakers.reload(); };
  const send = (row, what, more = {}) => async ({ reason, key }) => {
    const kind = row.kind === "subscription" ? "subscriptions" : "breakers";
    await api("POST", `${kind}/${nameOf(row.name)}/${what}`, { body: { reason, ...more }, key });
    reload();
  };
  const hold = (row) => ask({ title: row.held_by ? `Take ${row.name} over from ${visible(row.held_by)}?`
    : `Hold ${row.name}?`, verb: "Hold",
    danger: true, text: html`<p>Nothing passes until it is resumed. What is meant for it waits, and loses no
      attempt.</p>`,
    run: send(row, "hold", row.held_by ? { force: true } : {}) });
  const resume = (row) => ask({ title: `Resume ${row.name}?`, verb: "Resume", run: send(row, "resume"),
    text: html`<p>The next run sends one message as a probe. If that passes, the others follow.</p>
      ${row.last_error && html`<p class="warning"><${Text}>${row.last_error}<//></p>`}` });
  const forget = (row) => ask({ title: `Forget the breaker ${row.name}?`, verb: "Forget", danger: true,
    text: html`<p>For a breaker that nothing guards with any more: it is off the list, and comes back if something
      fails.</p>`,
    run: async ({ reason, key }) => { await api("DELETE", `breakers/${nameOf(row.name)}`,
      { params: { reason }, key }); reload(); } });
  const holdSource = () => ask({ title: "Hold a source", verb: "Hold", danger: true,
    text: html`<label class="field"><span>Its name, such as yfinance</span><input name="source" required autofocus
      maxlength="63" pattern="[A-Za-z0-9_\\-]+"
      autocomplete="off" onInput=${(event) => { name.current = event.target.value.trim(); }} /></label>
      <p>It is not asked until it is resumed, even if its breaker is not on record yet.</p>`,
    run: (given) => send({ kind: "source", name: name.current }, "hold", { is_new: true })(given) });
  const columns = [
    { title: "State", width: 130, cell: (one) => html`<${State} word=${one.held_by ? "held" : one.state} />` },
    { title: "Name", width: 190, cell: (one) => html`<code><${Name}>${one.name}<//></code>` },
    { title: "Is", width: 210, wide: true, cell: (one) => one.kind === "source" ? "a source, or gone"
      : html`<${Name}>${`subscription to ${one.topic}`}<//>` },
    { title: "Since", width: 100, wide: true, cell: (one) => one.opened_at
      && html`<${Instant} at=${one.opened_at} />` },
    { title: "Because", wide: true, cell: (one) => html`<span class="cut"><${Because} row=${one} /></span>` },
    { title: html`<span class="hidden">To do</span>`, width: 250, cell: (one) => html`<span class="acts tight">
      ${one.state !== "closed" && html`<${Act} scope="operate" kind="primary small" aria-label=${`Resume ${one.name}`}
        onClick=${() => resume(one)}>Resume …<//>`}
      ${one.held_by !== `token:${session.name}` && html`<${Act} scope="operate" kind="small"
        aria-label=${`Hold ${one.name}`}
        onClick=${() => hold(one)}>${one.held_by ? "Take over …" : "Hold …"}<//>`}
      ${one.kind === "source" && html`<${Act} scope="operate" kind="small" aria-label=${`Forget ${one.name}`}
        off=${one.is_guarded && one.held_by ? "it is held and in use: resume it" : ""}
          onClick=${() => forget(one)}>Forget …<//>`}</span>` },
  ];
  const error = subscriptions.error ?? breakers.error;
  return html`<section aria-labelledby="passing"><header class="section-head">
    <h2 id="passing">Subscriptions and sources</h2>
      <${Act} scope="operate" onClick=${holdSource}>Hold a source …<//>
      <span class="push"><${Stale} poll=${breakers} /></span></header>
    <${Trouble} error=${rows.length ? null : error} retry=${reload} />
    ${rows.length > 0 ? html`<${Table} label="Subscriptions and sources" columns=${columns} rows=${rows}
      keyOf=${(one) => `${one.kind} ${one.name}`} />`
      : !subscriptions.busy && !error && html`<${Empty}>There is no subscription: MigrationFunction makes
        them.<//>`}</section>`;
}
const nameOf = (name) => encodeURIComponent(name);

function Because({ row }) {
  if (row.held_by) return html`held by <${Text}>${row.held_by}<//>${row.held_reason
    && html`: <${Text}>${row.held_reason}<//>`}`;
  if (row.state === "closed") return row.consecutive_failures > 0
    ? html`${row.consecutive_failures} failures in a row: <${Text}>${row.last_error}<//>` : "";
  return html`<${Text}>${row.last_error ?? "it failed"}<//>${row.retry_in_seconds > 0
    && html`; probes in <${Duration} seconds=${row.retry_in_seconds} />`}`;
}

/* Tokens */

const SCOPES = {
  read: "see everything but tokens and the audit", operate: "hold, resume, switch, redrive, start runs",
    approve: "answer what decisions ask",
  metrics: "read metrics", admin: "make and revoke tokens, read the audit, delete for good",
};

function Tokens({ ask }) {
  useSession();
  const [isMaking, setMaking] = useState(false);
  const why = lacking("admin");
  return html`<section aria-labelledby="tokens"><header class="section-head"><h2 id="tokens">Tokens</h2>
      <${Act} scope="admin" onClick=${() => setMaking(true)}>Make a token …<//></header>
    ${why ? html`<${Empty}>Tokens are for admins: ${why}.<//>`
      : html`<${TokenList} ask=${ask} isMaking=${isMaking} setMaking=${setMaking} />`}</section>`;
}

function TokenList({ ask, isMaking, setMaking }) {
  const pages = usePages("tokens", undefined, { seconds: 15, keyOf: (one) => one.name });
  const [made, setMade] = useState(null);
  const revoke = ({ name }) => ask({ title: `Revoke the token ${name}?`, verb: "Revoke", danger: true,
    text: html`<p>It is refused from now on, for good. Its name is not given again.</p>`,
    run: async ({ reason, key }) => { await api("DELETE", `tokens/${nameOf(name)}`,
      { params: { reason }, key }); pages.reload(); } });
  const stateOf = (one) => one.revoked_at ? "revoked" : one.expires_at && new Date(one.expires_at) < new Date()
    ? "expired" : "valid";
  const columns = [
    { title: "State", width: 110, cell: (one) => html`<${State} word=${stateOf(one)} tone=${stateOf(one) === "valid"
      ? "good" : "idle"} />` },
    { title: "Name", width: 190, cell: (one) => html`<a href=${link("audit", { token: one.name })}>
      <${Name}>${one.name}<//></a>` },
    { title: "May", cell: (one) => html`<span class="words">${one.scopes.join(", ")}</span>` },
    { title: "Made by", width: 130, wide: true, cell: (one) => html`<${Name}>${one.created_by}<//>` },
    { title: "Made", width: 100, wide: true, cell: (one) => html`<${Instant} at=${one.created_at} />` },
    { title: "Last used", width: 100, wide: true, cell: (one) => html`<${Instant} at=${one.last_used_at} />` },
    { title: "Ends", width: 110, wide: true, cell: (one) => one.revoked_at ? html`<${Instant} at=${one.revoked_at} />`
      : one.expires_at ? html`<${Instant} at=${one.expires_at} />` : "when revoked" },
    { title: html`<span class="hidden">To do</span>`, width: 110, cell: (one) => !one.revoked_at
      && html`<${Act} scope="admin"
        kind="danger small" aria-label=${`Revoke ${one.name}`}
        onClick=${() => revoke(one)}>Revoke …<//>` },
  ];
  return html`${made && html`<${Made} made=${made} onClose=${() => setMade(null)} />`}
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0 ? html`<${Table} label="Tokens" columns=${columns} rows=${pages.items}
      keyOf=${(one) => one.name} />
        ${pages.more && html`<${More} pages=${pages} />`}`
      : !pages.busy && !pages.error && html`<${Empty}>There is the secret's token alone.<//>`}
    <${Making} open=${isMaking} onClose=${() => setMaking(false)}
      onMade=${(one) => { setMade(one); pages.reload(); }} />`;
}

function Making({ open, onClose, onMade }) {
  const given = useRef();
  useEffect(() => { given.current = { name: "", scopes: new Set(["read"]), expires: "" }; }, [open]);
  const toggle = (scope, on) => given.current.scopes[on ? "add" : "delete"](scope);
  const make = async ({ reason, key }) => {
    const { name, scopes, expires } = given.current;
    const body = { name, scopes: [...scopes], reason };
    if (expires) body.expires_at = new Date(expires + (utc.get() === "1" ? "Z" : "")).toISOString();
    onMade(await api("POST", "tokens", { body, key }));
  };
  return html`<${Confirm} open=${open} title="Make a token" verb="Make it" reason=${true} onConfirm=${make}
    onClose=${onClose}>
    <label class="field"><span>Whose it is, such as kim</span><input name="token" required autofocus maxlength="63"
      pattern="[a-z][a-z0-9_.\\-]*" autocomplete="off" spellcheck=${false}
      onInput=${(event) => { given.current.name = event.target.value.trim(); }} /></label>
    <fieldset><legend>It may</legend>${Object.entries(SCOPES).map(([scope, what]) => {
      const why = lacking(scope);
      return html`<label key=${scope} class="check"><input type="checkbox" disabled=${why !== ""}
        defaultChecked=${scope === "read"}
        onChange=${(event) => toggle(scope, event.target.checked)} /> <span><strong>${scope}</strong>: ${what}${why
          && ` (${why})`}</span></label>`;
    })}</fieldset>
    <label class="field"><span>Until${utc.get() === "1" ? " (UTC)" : " (local time)"};
      ${" "}empty: until it is revoked${session.expires_at ? ", and no longer than yours" : ""}</span>
      <input name="until" type="datetime-local" onInput=${(event) => { given.current.expires = event.target.value; }} />
        </label><//>`;
}

/** The new token, which is shown this once. */
function Made({ made, onClose }) {
  const [told, tell] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(made.token);
      tell("Copied.");
    } catch { tell("It could not be copied: select it."); }
  };
  return html`<div class="made" role="status"><p><strong>The token of <${Text}>${made.name}<//>.</strong> ${made.token
      ? "It is shown this once; only its hash is stored."
        : "It was shown before, and cannot be again: revoke it, and make another."}</p>
    ${made.token && html`<p><code class="secret">${made.token}</code></p>`}
    <p class="acts">${made.token && html`<button type="button" onClick=${copy}>Copy it</button>`}<button type="button"
      onClick=${onClose}>I have it</button>
      <span class="told">${told}</span></p></div>`;
}
