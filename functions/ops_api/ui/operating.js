/** What the views share that change something: buttons that say what a token lacks, plans, an operation's progress. */
import {
  Bar, Duration, Id, Instant, Json, State, Text, Trouble, api, count, exact, html, link, may, newKey, session,
  useEffect, usePoll, useRef, useSession, useState, useStore, utc, visible,
} from "#kit";

/** The kinds that delete for good: they ask for the scope admin. */
export const FOR_ADMINS = new Set(["retention", "erasure"]);
const ENDED = new Set(["done", "cancelled", "failed"]);
/** What an operation of a kind counts, and what is true of an item that is done. */
const ITEMS = {
  redrive: ["letter", "letters", "pending again"],
  replay: ["delivery", "deliveries", "promised"],
  backfill: ["piece", "pieces", "fetched and stored"],
  rebuild: ["event", "events", "folded in"],
  retention: ["row", "rows", "deleted"],
  erasure: ["row", "rows", "erased"],
  discard: ["letter", "letters", "let go"],
};
const OTHER = ["item", "items", "done"];

export const counted = (value, one, many = `${one}s`) => `${count(value ?? 0)} ${value === 1 ? one : many}`;
export const scopeOf = (operation) => (FOR_ADMINS.has(operation.kind) ? "admin" : "operate");
/** Says what the token lacks for a scope; empty where it has it, and until it is known what it has. */
export const lacking = (scope) => (may(scope) || !session.name ? "" : `this token lacks the scope ${scope}`);

/** A button that stays in its place where it cannot be used, and says why. */
export function Act({ scope, off = "", kind, onClick, children, ...rest }) {
  useSession();
  const why = (scope && lacking(scope)) || off;
  return html`<button type="button" class=${kind} aria-disabled=${why ? "true" : undefined} title=${why || undefined}
    onClick=${why ? undefined : onClick} ...${rest}>${children}${why
      && html`<span class="hidden"> (${why})</span>`}</button>`;
}

/** A sentence beside buttons that the token may not use. */
export function Lacking({ scope, what }) {
  useSession();
  const why = lacking(scope);
  return why && html`<p class="lacking" role="note">You can look, but not ${what}: ${why}.</p>`;
}

/** A name in a list: in one line, whole on hover. */
export const Name = ({ children }) => html`<span class="oneline" title=${children ? visible(children)
  : undefined}><${Text}>${children ?? "–"}<//></span>`;

/** A time to the second, as the clock shows it. */
export function Clock({ at }) {
  const inUtc = useStore(utc) === "1";
  return html`<time class="number" datetime=${at} title=${`${exact(at, false)} local, ${exact(at, true)}`}>${
    exact(at, inUtc).replace(/\.\d{3}/, "")}</time>`;
}

/** Names, and what they have; one that has nothing is left out. */
export const Facts = ({ rows }) => html`<dl class="pairs">${rows
  .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
  .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${
    typeof value === "string" ? html`<${Text}>${value}<//>` : value}</dd></div>`)}</dl>`;

/** Asks before a change: Enter confirms, Escape closes. `onConfirm({reason, key})` returns a promise. */
export function Confirm({ open, title, children, verb, danger = false, reason = false, keep = "Cancel", onConfirm,
  onClose }) {
  const dialog = useRef();
  const [state, setState] = useState({ busy: false, error: null, key: "" });
  useEffect(() => {
    if (!open) return;
    setState({ busy: false, error: null, key: newKey() });
    dialog.current.showModal();
  }, [open]);
  if (!open) return null;
  const leave = () => { dialog.current?.close(); onClose(); }; // closed, it gives the focus back
  const submit = async (event) => {
    event.preventDefault();
    if (state.busy) return;
    const given = new FormData(event.target).get("reason")?.trim();
    setState({ ...state, busy: true, error: null });
    try {
      await onConfirm({ reason: given, key: state.key });
      leave();
    } catch (error) { setState({ busy: false, error, key: error.status === 0 ? state.key : newKey() }); }
  };
  const cancel = (event) => { event.preventDefault(); leave(); };
  return html`<dialog ref=${dialog} aria-label=${title} onCancel=${cancel}><form onSubmit=${submit}>
    <h2>${title}</h2><div>${children}</div>
    ${reason && html`<label class="field"><span>Why? It is kept on record.</span>
      <input name="reason" required maxlength="1000" autocomplete="off" autofocus /></label>`}
    <${Trouble} error=${state.error} />
    <footer><button type="button" onClick=${leave}>${keep}</button>
      <button class=${danger ? "danger" : "primary"} aria-disabled=${state.busy} autofocus=${!reason}>${
        state.busy ? "…" : verb}</button></footer>
  </form></dialog>`;
}

/** Asks for a reason, and does what was asked: `what` is {title, text, verb, danger, keep, run({reason, key})}. */
export const Asked = ({ what, onClose }) => html`<${Confirm} open=${what !== null} title=${what?.title}
  verb=${what?.verb}
  danger=${what?.danger} keep=${what?.keep} reason=${true} onConfirm=${what?.run} onClose=${onClose}>${what?.text}<//>`;

const plannedOf = (value) => {
  if (typeof value === "number") return count(value);
  if (value && typeof value === "object" && "rows" in value) {
    return html`${count(value.rows)} before <${Clock} at=${value.before} />`;
  }
  return visible(typeof value === "string" ? value : JSON.stringify(value));
};

function Sample({ kind, value }) {
  if (kind === "redrive") return html`<a href=${link("letters", { id: value })}>#${visible(value)}</a>`;
  const id = typeof value === "string" ? value : value?.event_id;
  if (kind === "replay" && id) return html`<${Id} value=${id} view="event" />`;
  return html`<code><${Text}>${typeof value === "string" ? value : JSON.stringify(value)}<//></code>`;
}

function Counts({ title, of }) {
  const entries = Object.entries(of ?? {});
  return entries.length > 0 && html`<table class="counts"><caption>${title}</caption>
    <tbody>${entries.map(([name, value]) =>
    html`<tr key=${name}><th scope="row"><${Text}>${name}<//></th><td class="right">${plannedOf(value)}</td>
      </tr>`)}</tbody></table>`;
}

/** What a plan says it would do: first how much, then to whom, then what comes of it. */
export function Plan({ operation }) {
  const { plan, kind, total } = operation;
  const [one, many] = ITEMS[kind] ?? OTHER;
  const sample = Array.isArray(plan.sample) ? plan.sample : [];
  return html`<div class="plan-told">
    <p class="total"><strong>${counted(total, one, many)}</strong>${plan.estimated_seconds > 0
      && html`<span class="muted">
      ${" "}about <${Duration} seconds=${plan.estimated_seconds} /></span>`}</p>
    <${Counts} title="By subscription" of=${plan.letters} />
    <${Counts} title="By table" of=${plan.tables ?? plan.what} />
    <${Counts} title="Left out, as the subscription is not active" of=${plan.inactive} />
    <${Counts} title="Left out, as the outbox does not hold the message" of=${plan.unknown} />
    ${plan.effect && html`<p><${Text}>${plan.effect}<//></p>`}
    ${plan.left_out > 0 && html`<p class="warning">${count(plan.left_out)} stored too late for this window are left
      out${
      plan.held_back_by ? `; held back by ${visible(plan.held_back_by)}` : ""}.</p>`}
    ${plan.decisions_to_wait_for > 0 && html`<p>It waits for ${counted(plan.decisions_to_wait_for,
      "open decision")}.</p>`}
    ${sample.length > 0 && html`<p class="sample"><span class="muted">Such as</span> ${sample.map((value, place) =>
      html`<span key=${place}>${place > 0 && ", "}<${Sample} kind=${kind} value=${value} /></span>`)}</p>`}</div>`;
}

/** Plans an operation, shows the plan, and starts exactly that by its hash; what is not started is cancelled. */
export function PlanDialog({ title, request, verb, onClose, onStarted }) {
  const dialog = useRef();
  const field = useRef();
  const started = useRef(false);
  const key = useRef(newKey());
  const [operation, setOperation] = useState(null);
  const [state, setState] = useState({ busy: false, error: null });
  useEffect(() => {
    let ended = false, made = null;
    dialog.current.showModal();
    const follow = async () => {
      try {
        made = await api("POST", "operations", { body: { ...request,
          reason: "planned on the page, to see what it would do" } });
        for (let wait = 150; made.state === "planning" && !ended; wait = Math.min(wait * 2, 2000)) {
          setOperation(made);
          await new Promise((done) => setTimeout(done, wait));
          made = await api("GET", `operations/${made.operation_id}`);
        }
        if (!ended) setOperation(made);
      } catch (error) {
        if (!ended) setState({ busy: false, error });
      }
      if (ended && !started.current) forget();
    };
    // A plan that nobody starts, and that is not cancelled, ends after an hour.
    const forget = () => made && !ENDED.has(made.state) && api("POST", `operations/${made.operation_id}/cancel`,
      { body: { reason: "the plan was only looked at" } }).catch(() => {});
    follow();
    return () => { ended = true; if (!started.current) forget(); };
  }, []);
  const isPlanned = operation?.state === "planned";
  const canStart = isPlanned && operation.total > 0;
  useEffect(() => { if (canStart) field.current.focus(); }, [canStart]);
  const start = async (event) => {
    event.preventDefault();
    if (!canStart || state.busy) return;
    const given = new FormData(event.target);
    const body = { plan_hash: operation.plan_hash, reason: given.get("reason").trim() };
    if (given.get("rate")) body.rate = Number(given.get("rate"));
    setState({ busy: true, error: null });
    try {
      await api("POST", `operations/${operation.operation_id}/start`, { body, key: key.current });
      started.current = true;
      dialog.current.close();
      onStarted(operation.operation_id);
    } catch (error) {
      if (error.status !== 0) key.current = newKey();
      setState({ busy: false, error });
    }
  };
  const leave = (event) => {
    event.preventDefault();
    dialog.current.close(); // this gives the focus back
    onClose();
  };
  return html`<dialog ref=${dialog} aria-label=${title} onCancel=${leave}><form onSubmit=${start}>
    <h2>${title}</h2>
    <div class="planned" role="status">
      ${(!operation || operation.state === "planning") && !state.error && html`<p class="muted">Counting …</p>`}
      ${isPlanned && html`<${Plan} operation=${operation} />`}
      ${isPlanned && operation.total === 0 && html`<p>Nothing would be done: no open letter that can be sent again
        fits.</p>`}
      ${operation?.state === "failed" && html`<p class="warning">It cannot be planned: <${Text}>${operation.error}<//>
        </p>`}</div>
    <label class="field"><span>Why? It is kept on record.</span>
      <input ref=${field} name="reason" required pattern=".*\\S.*" maxlength="1000" autocomplete="off" /></label>
    <label class="field"><span>At most so many a second</span>
      <input name="rate" type="number" min="0.01" max="100000" step="any" placeholder="as fast as it goes" /></label>
    <${Trouble} error=${state.error} />
    <footer><button type="button" onClick=${leave}>Cancel</button>
      <button class="primary" disabled=${!canStart} aria-disabled=${state.busy}>${verb} ${canStart
        ? count(operation.total) : ""}</button></footer>
  </form></dialog>`;
}

/** How far an operation is, down to what has become of its messages. */
export function Progress({ operation }) {
  const { kind, state, total, done, skipped, deliveries, rate } = operation;
  const [one, many, is] = ITEMS[kind] ?? OTHER;
  if (!operation.started_at) return null;
  const left = Math.max(total - done - skipped, 0);
  return html`<section class="progress-told" aria-label="Progress">
    <p><${Bar} done=${done + skipped} total=${total} label=${`${many} ${is}`} /> <span>${total === 1 ? one
      : many} ${is}${
      skipped > 0 && `, ${count(skipped)} of them skipped: gone or settled meanwhile`}${
      state === "running" && rate && left > 0 && html`; <${Duration} seconds=${left / rate} /> left`}</span></p>
    ${deliveries && html`<p role="status" class=${deliveries.delivered === done && done > 0 ? "all" : undefined}>${
      deliveries.delivered === null ? "More than 100,000 messages wait for a relay."
      : html`<${Bar} done=${deliveries.delivered} total=${done} label="messages delivered" /> <span>${done === 1
        ? "message" : "messages"} delivered${
        deliveries.waiting > 0 ? `, ${count(deliveries.waiting)} ${deliveries.waiting === 1 ? "waits"
          : "wait"} for a relay` : ""}${
        deliveries.dead_lettered > 0 && html`, <a href=${link("letters", { subscription: operation.subscription })}>
          ${count(deliveries.dead_lettered)} given up on again</a>`}</span>`}</p>`}</section>`;
}

/** What can be done with an operation as it is: its label, the button's kind, and what is asked. */
function commandsOf(operation, send) {
  const { kind, state, started_at: startedAt, progress } = operation;
  const isOver = ENDED.has(state);
  const isAwaiting = progress?.cursor?.awaiting === "acceptance" && !isOver;
  return [
    state === "planned" && ["Start …", "primary", { title: `Start this ${kind}?`, verb: "Start",
      danger: FOR_ADMINS.has(kind),
      text: html`<${Plan} operation=${operation} />`, run: send("start", () => ({ plan_hash: operation.plan_hash })) }],
    isAwaiting && ["Accept …", "primary", { title: "Put the rebuilt tables in place although they differ?",
      verb: "Accept",
      text: html`<p>A consumer that was mended makes a difference; so does a mistake. Compare rows and content
        first.</p>`,
      run: send("accept") }],
    state === "running" && ["Pause …", "", { title: `Pause this ${kind}?`, verb: "Pause",
      text: html`<p>The step under way is finished; what is promised for the next minute goes out.</p>`,
        run: send("pause") }],
    (state === "paused" || (state === "failed" && startedAt))
      && ["Resume …", "primary", { title: `Resume this ${kind}?`,
      verb: "Resume", text: html`<p>It goes on where it was.</p>`, run: send("resume") }],
    !isOver && state !== "planning" && ["Rate …", "", { title: "Another rate", verb: "Change",
      text: html`<label class="field"><span>Items a second</span><input name="rate" type="number" min="0.01"
        max="100000"
        step="any" required autofocus defaultValue=${operation.rate ?? ""} data-rate /></label>`,
      run: send("rate", () => ({ rate: Number(document.querySelector("dialog[open] [data-rate]").value) }), "PUT") }],
    (!isOver || state === "failed") && ["Cancel …", "danger",
      { title: `Cancel this ${kind}?`, verb: "Cancel it", keep: "Let it go on",
      danger: true,
      text: html`<p>What is done stays done; what is promised and not under way is taken back.</p>`,
        run: send("cancel") }],
  ].filter(Boolean);
}

/** One operation: how far it is, what can be done with it now, who wanted it and why, and its plan. */
export function Operation({ id }) {
  const [seconds, setSeconds] = useState(1);
  const poll = usePoll(`operations/${encodeURIComponent(id)}`, undefined, { seconds });
  const [asked, ask] = useState(null);
  const [told, tell] = useState("");
  const operation = poll.data;
  const pause = !operation || ["planning", "running"].includes(operation.state) ? 1 : operation.deliveries?.waiting > 0
    ? 2 : 10;
  useEffect(() => setSeconds(pause), [pause]);
  if (!operation) return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
    : html`<p class="muted">Reading …</p>`;
  const { state, kind, deliveries, progress, subscription } = operation;
  const scope = scopeOf(operation);
  const send = (what, more = () => ({}), method = "POST") => async ({ reason, key }) => {
    await api(method, `operations/${operation.operation_id}/${what}`, { body: { reason, ...more() }, key });
    poll.reload();
  };
  const startRelay = async () => {
    try {
      const reason = `to deliver what operation ${operation.operation_id} made pending`;
      await api("POST", "relay/run", { body: { reason } });
      tell("A relay was started.");
    } catch (error) { tell(`None was started: ${error.message}`); }
  };
  const commands = commandsOf(operation, send);
  const cursor = progress?.cursor ?? {};
  return html`<div class="operation-pane">
    <h3><span>${kind}${subscription && html` of <${Text}>${subscription}<//>`}</span><${State} word=${state} /></h3>
    ${operation.is_stalled && html`<p class="warning">It should be at work, and has made no step for five minutes.</p>`}
    ${operation.error && html`<p class="warning">${state === "failed" ? "It was given up: "
      : `${counted(operation.failures, "attempt")} failed: `}
      <${Text}>${operation.error}<//></p>`}
    ${cursor.awaiting === "acceptance" && !ENDED.has(state)
      && html`<p class="warning">The rebuilt tables differ from those in use. It waits for a person.</p>`}
    <${Progress} operation=${operation} />
    ${deliveries?.waiting > 0 && html`<p class="acts"><${Act} scope="operate"
      onClick=${startRelay}>Start a relay now<//>
      <span class="muted">One comes by itself each minute.</span></p>`}
    <p role="status" class="told">${visible(told)}</p>
    ${commands.length > 0 && html`<p class="acts">${commands.map(([label, style, what]) =>
      html`<${Act} key=${label} scope=${scope} kind=${style} onClick=${() => ask(what)}>${label}<//>`)}</p>
      <${Lacking} scope=${scope} what="change it" />`}
    <${Facts} rows=${[
      ["Why", operation.reason],
      ["Asked for", html`<${Text}>${operation.requested_by}<//>, <${Instant} at=${operation.requested_at} />`],
      ["Started", operation.started_at && html`<${Text}>${operation.started_by}<//>, <${Instant}
        at=${operation.started_at} />`],
      ["Last step", operation.last_step_at && html`<${Instant} at=${operation.last_step_at} />`],
      ["Ended", operation.finished_at && html`<${Instant} at=${operation.finished_at} />`],
      ["Rate", operation.rate && `${operation.rate} a second`],
      ["Operation", html`<${Id} value=${operation.operation_id} view="operations" />`],
      ["Plan's hash", operation.plan_hash && html`<${Id} value=${operation.plan_hash} />`],
    ]} />
    ${operation.plan_hash && html`<h4>Plan</h4><${Plan} operation=${operation} />`}
    ${cursor.tables && html`<h4>Compared</h4><${Compared} tables=${cursor.tables} />`}
    <h4>Filter</h4><${Json} value=${operation.filter} label="Filter" />
    ${Object.keys(cursor).length > 0 && html`<h4>Where it stands</h4><${Json} value=${cursor}
      label="Where it stands" />`}
    <${Asked} what=${asked} onClose=${() => ask(null)} /></div>`;
}

const Compared = ({ tables }) => html`<table class="counts">
  <thead><tr><th scope="col">table</th><th scope="col" class="right">rows</th>
    <th scope="col" class="right">rebuilt</th><th scope="col">content</th></tr></thead>
  <tbody>${Object.entries(tables).map(([name, it]) => html`<tr key=${name}><th scope="row"><${Text}>${name}<//></th>
      <td class="right">${count(it.rows)}</td><td class="right">${count(it.rebuilt_rows)}</td>
      <td>${it.rows === it.rebuilt_rows && it.digest === it.rebuilt_digest ? "the same"
        : "differs"}</td></tr>`)}</tbody></table>`;
