/** One decision: what came of it and why, options, verdicts, outcome, every step on record, two ways to ask again. */
import {
  Empty, Id, Instant, Json, Split, Stale, State, Table, Term, Text, Trouble, api, count, html, link, money, spoken,
  usd, usePoll, useState, visible,
} from "#kit";
import { Said, Section, Waterfall, micros } from "#views/event";

export const title = "Decision";

/* Values as people write them: whole numbers are on record in the unit that their name ends with. */

const percent = (ppm, signed) => `${signed && ppm > 0 ? "+" : ""}${(ppm / 1e4).toFixed(1)} %`;
const label = (name) => name.replace(/_(ppm|micros|milli)$/, "").replace(/^is_/, "").replaceAll("_", " ");
const HIDDEN = /(_sha256|_id|_seq|_at|^lease_until|^fence|^source|^series|^seed)$/;
function written(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (name.endsWith("_ppm")) return percent(value, name.includes("return"));
    if (name.endsWith("_micros")) return money(value);
    if (name.endsWith("_milli")) return (value / 1e3).toFixed(1);
    return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
  }
  if (Array.isArray(value)) {
    return value.length > 4 || value.some((one) => one !== null && typeof one === "object") ? `${value.length} values`
      : value.map((one) => written(name, one)).join("; ");
  }
  if (value !== null && typeof value === "object") {
    return Object.entries(value).filter(([key, inner]) => inner !== null && !HIDDEN.test(key))
      .map(([key, inner]) => `${label(key)} ${written(key, inner)}`).join(", ");
  }
  return String(value);
}
const isSaid = (value) => value !== null && value !== undefined && value !== ""
  && !(typeof value === "object" && !Object.keys(value).length);
function Fields({ of, only }) {
  const told = Object.entries(of ?? {}).filter(([name, value]) => isSaid(value) && !HIDDEN.test(name)
    && (!only || only.includes(name)));
  return told.length > 0 && html`<dl class="facts">${told.map(([name,
    value]) => html`<dt><${Text}>${label(name)}<//></dt>
    <dd><${Said}>${written(name, value)}<//></dd>`)}</dl>`;
}
function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch { return {}; }
}
const hex = (text) => text?.replace(/^\\x/, "");
const passed = (from, to) => Math.max(0, (micros(to) - micros(from)) / 1e6);
const list = (value) => (Array.isArray(value) ? value : []);

/* What a step used or gave, by its hash. */

function Artifact({ sha256, name, of }) {
  const [state, setState] = useState({});
  if (!sha256) return null;
  const read = async () => {
    if (state.busy) return;
    setState({ busy: true });
    try {
      const { size, base64 } = await api("GET", `artifacts/${hex(sha256)}`);
      const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
      const text = new TextDecoder().decode(bytes);
      let value = text;
      if (bytes.length === size) try { value = JSON.parse(text); } catch { /* it is no JSON */ }
      setState({ value, isText: value === text, more: size - bytes.length });
    } catch (error) { setState({ error }); }
  };
  if (state.error) return html`<${Trouble} error=${state.error} retry=${read} />`;
  if (state.value === undefined) return html`<button type="button" aria-disabled=${state.busy === true}
    onClick=${read}>${state.busy ? "Reading …" : `Show ${name}`}</button>`;
  return html`<div><h3>${name}</h3>${state.isText ? html`<pre class="json" tabindex="0" role="region"
    aria-label=${`${name} of ${of}`}>${visible(state.value)}</pre>`
    : html`<${Json} value=${state.value} label=${`${name} of ${of}`} />`}
    ${state.more > 0 && html`<p class="muted">${count(state.more)} more bytes: <${Term}>acp artifact ${hex(sha256)}<//>
      </p>`}</div>`;
}

/* What came of it, in a sentence. */

const named = (steps, kind) => steps.filter((step) => step.kind === kind);
const newest = (steps, kind) => named(steps, kind).at(-1);

/** What would be done, on one line. */
function Action({ of }) {
  const { side, entity_id: entity, quantity_micros: quantity, reference_price_micros: price, notional_micros: amount,
    currency, ...rest } = of;
  const isOrder = side && entity && Number.isFinite(quantity) && Number.isFinite(price);
  const said = isOrder ? `${side} ${money(quantity)} ${entity} at ${money(price)} ${currency}${Number.isFinite(amount)
    ? `, ${money(amount)} ${currency} in all` : ""}` : "";
  const more = written("", isOrder ? rest : of);
  return html`<p class="action"><${Text}>${[said, more].filter(Boolean).join("; ")}<//></p>`;
}
function Came({ facts, steps, poll }) {
  const proposal = newest(steps, "proposal");
  const verdict = newest(steps, "verdict");
  const asked = newest(steps, "approval_asked");
  const answer = newest(steps, "approval");
  const execution = newest(steps, "execution");
  const closed = newest(steps, "closed");
  const outcome = newest(steps, "outcome");
  const isWaiting = ["proposed", "awaiting_approval"].includes(facts.state) && asked && !answer;
  const why = [];
  if (execution) why.push(html`<${Text}>${execution.body.outcome}<//>${execution.body.reason
    ? html`: <${Text}>${execution.body.reason}<//>` : ""} by its client`);
  if (answer) why.push(html`${answer.body.is_given ? "approved"
    : "denied"} by <${Text}>${answer.body.decided_by}<//>${answer.body.reason
      ? html` (<${Text}>${answer.body.reason}<//>)` : ""}`);
  if (verdict && !execution && verdict.body.verdict !== "permitted") {
    why.push(html`${verdict.body.verdict.replaceAll("_", " ")}: <${Text}>${[...list(verdict.body.reasons),
      ...list(verdict.body.errors)].join("; ")}<//>`);
  }
  if (closed && facts.state !== "scored") why.push(html`<${Text}>${closed.body.reason}<//>`);
  if (outcome) why.push("what happened was held against the forecasts");
  return html`<p class="about"><strong><${Text}>${facts.entity_id}<//></strong> <${State} word=${facts.state} />
      ${proposal && html`<b><${Text}>${proposal.body.action_type}<//></b>`}
      ${proposal?.body.option && html`<span class="muted"><${Text}>${proposal.body.option}<//></span>`}
      ${facts.is_shadow && html`<span class="muted">in shadow: nothing is released</span>`}<${Stale} poll=${poll} /></p>
    ${proposal?.output && html`<${Action} of=${parsed(proposal.output)} />`}
    ${why.length > 0 && html`<ul class="plain because">${why.map((one) => html`<li>${one}</li>`)}</ul>`}
    ${isWaiting && html`<p class="asks"><${State} word="awaiting_approval" /> <span>A person is asked
      until <${Instant} at=${asked.body.expires_at} absolute />; silence is a no.</span>
      <a class="button primary" href=${link("approvals", { id: asked.body.approval_id })}>Answer …</a></p>`}`;
}

/* Options. */

function options(steps) {
  const simulated = newest(steps, "simulation")?.body ?? {};
  const happened = Object.fromEntries(list(newest(steps, "outcome")?.body.options).map((one) => [one.name,
    one.result_micros]));
  const taken = newest(steps, "proposal")?.body.option;
  return list(simulated.options).map((one) => ({ ...one, happened: happened[one.name] ?? null,
    isTaken: one.name === taken,
    quantiles: one.loss_quantiles_micros ?? {} }));
}
/** Round marks from one end to the other, three to seven of them. */
export function marks(from, to) {
  const raw = (to - from) / 6;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((each) => each * unit >= raw) * unit;
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, n) => (first + n) * step);
}
/** Each option as what the account gains or loses: the worse half of the simulated paths, and what happened. */
function Distributions({ rows }) {
  const drawn = rows.filter((one) => Object.keys(one.quantiles).length);
  const all = drawn.flatMap((one) => [...Object.values(one.quantiles).map((loss) => -loss), one.mean_micros,
    -one.expected_shortfall_micros, one.happened]).filter(Number.isFinite);
  if (!all.length) return null;
  const low = Math.min(0, ...all), high = Math.max(0, ...all);
  const edge = (high - low || 1) * 0.06;
  const x = (amount) => `${((100 * (amount - low + edge)) / (high - low + 2 * edge)).toFixed(2)}%`;
  const span = (from, to) => ({ x: x(Math.min(from, to)),
    width: `${((100 * Math.abs(to - from)) / (high - low + 2 * edge)).toFixed(2)}%` });
  return html`<figure class="options" aria-label="Simulated options, drawn">
    ${drawn.map((one) => {
    const [half, most, worst] = ["50", "95", "99"].map((q) => -one.quantiles[q]);
    const said = `${one.name}: half of the paths end below ${money(half)}, one in twenty below ${money(most)},`
      + ` one in a hundred below ${money(worst)}; on average ${money(one.mean_micros)}`
      + (one.happened === null ? "" : `; it came to ${money(one.happened)}`);
    return html`<div class=${one.isTaken ? "option taken" : "option"}
      key=${one.name}><span class="name"><${Text}>${label(one.name)}<//>${one.isTaken
        && html` <small>proposed</small>`}</span>
      <svg height="28" role="img" aria-label=${visible(said)}><title>${visible(said)}</title>
        <line class="zero" x1=${x(0)} x2=${x(0)} y1="0" y2="28" /><rect class="tail" y="12" height="4"
          ...${span(worst, half)} />
        <rect class="body" y="8" height="12" rx="2" ...${span(most, half)} /><line class="half" x1=${x(half)}
          x2=${x(half)} y1="6" y2="22" />
        <svg class="over" x=${x(-one.expected_shortfall_micros)} y="14"><path class="tick" d="M0-4 4 4H-4z" /></svg>
        <svg class="over" x=${x(one.mean_micros)} y="14"><path class="mean" d="M0-5 5 0 0 5-5 0z" /></svg>
        ${one.happened !== null && html`<circle class="came" cx=${x(one.happened)} cy="14" r="5" />`}</svg></div>`;
  })}
    <div class="option axis"><span></span><svg height="20"
      aria-hidden="true">${marks(low, high).map((each) => html`<text x=${x(each)} y="14"
        text-anchor="middle">${count(Math.round(each / 1e6))}</text>`)}</svg></div>
    <figcaption class="muted"><span class="key body">
      </span>worse half of the paths, up to one in twenty <span class="key tail"></span>up to one in a hundred
      <svg class="key" viewBox="-6 -6 12 12" aria-hidden="true"><path class="mean" d="M0-5 5 0 0 5-5 0z" /></svg>mean
      <svg class="key" viewBox="-6 -6 12 12" aria-hidden="true"><path class="tick"
        d="M0-4 4 4H-4z" /></svg>mean of the worst twentieth
      ${drawn.some((one) => one.happened !== null)
        && html`<svg class="key" viewBox="-6 -6 12 12" aria-hidden="true"><circle class="came"
          r="4.5" /></svg>what happened`}</figcaption></figure>`;
}
function Options({ steps }) {
  const simulated = newest(steps, "simulation");
  if (!simulated) return null;
  const rows = options(steps);
  const { paths, horizon_bars: bars, large_move: move } = simulated.body;
  const isDrawn = rows.some((one) => Object.keys(one.quantiles).length);
  return html`<${Section} name="Simulated options">
    ${paths && html`<p class="muted">${count(paths)} paths of ${count(bars)} bars${move
      ? `; a move beyond ${percent(move.threshold_ppm)} in ${percent(move.probability_ppm)} of them`
        : ""}. Amounts in the account's currency.</p>`}
    <${Distributions} rows=${rows} />
    ${isDrawn ? html`<${Table} label="Simulated options, in numbers" rows=${rows} keyOf=${(one) => one.name} columns=${[
    { title: "Option", cell: (one) => html`<${Text}>${label(one.name)}<//>` },
    { title: "Loss, half", align: "right", cell: (one) => money(one.quantiles["50"]) },
    { title: "1 in 20", align: "right", cell: (one) => money(one.quantiles["95"]) },
    { title: "1 in 100", align: "right", cell: (one) => money(one.quantiles["99"]) },
    { title: "Worst twentieth", align: "right", cell: (one) => money(one.expected_shortfall_micros) },
    { title: "Mean result", align: "right", cell: (one) => money(one.mean_micros) },
    { title: "Cost", align: "right", cell: (one) => money(one.cost_micros) },
    { title: "Happened", align: "right", cell: (one) => money(one.happened) },
  ]} />` : html`<${Json} value=${simulated.body.options ?? simulated.body} label="Options" />`}<//>`;
}

/* Verdicts, approval, outcome. */

function isOtherPolicy(steps, verdict) {
  const pinned = parsed(steps[0]?.output).policy ?? {};
  const used = { policy: hex(verdict.body.policy_sha256), policy_schema: hex(verdict.body.schema_sha256) };
  return Object.entries(pinned).some(([name, sha256]) => used[name] && used[name] !== sha256);
}
function Verdicts({ steps }) {
  const verdicts = named(steps, "verdict");
  const asked = newest(steps, "approval_asked");
  const answer = newest(steps, "approval");
  if (!verdicts.length && !asked) return null;
  return html`<${Section} name="Verdict and approval">
    <ol class="plain verdicts">${verdicts.map((step) => html`<li key=${step.seq}>
      <p><${State} word=${step.body.verdict} tone=${{ permitted: "good", refused: "bad",
        needs_approval: "warn" }[step.body.verdict]} />
        <span class="muted"> <${Instant} at=${step.at} absolute />${step.body.is_shadow ? ", in shadow"
          : ""}${isOtherPolicy(steps, step) ? ", by another policy than when the decision was opened" : ""}</span></p>
      <ul>${list(step.body.reasons).map((one) => html`<li><${Text}>${one}<//></li>`)}
        ${list(step.body.errors).map((one) => html`<li class="said"><${Text}>${one}<//></li>`)}</ul>
      <div class="buttons"><${Artifact} sha256=${step.body.policy_sha256} name="the policy"
        of=${`step ${step.seq}`} /><${Artifact} sha256=${step.body.request_sha256} name="what it was asked"
          of=${`step ${step.seq}`} /></div></li>`)}</ol>
    ${asked && html`<div><h3>What a person was asked</h3><pre class="json" tabindex="0" role="region"
      aria-label="What a person was asked">${visible(asked.body.shown)}</pre>
      <p>${answer ? html`<${State} word=${answer.body.is_given ? "approved"
        : "denied"} /> by <b><${Text}>${answer.body.decided_by}<//></b>, <${Instant} at=${answer.at}
          absolute />${answer.body.reason && html`: <${Text}>${answer.body.reason}<//>`}`
    : html`<${State} word="awaiting_approval" /> until <${Instant} at=${asked.body.expires_at} absolute />`}
</p>
      <p><a href=${link("approvals", { id: asked.body.approval_id })}>The request, with its answer</a></p></div>`}<//>`;
}
function Outcome({ steps }) {
  const outcome = newest(steps, "outcome");
  if (!outcome) return null;
  const scores = list(outcome.body.scores);
  return html`<${Section} name="Outcome beside the forecasts"><${Fields} of=${outcome.body}
    only=${["state", "move_ppm", "moved_ppm", "bars"]} />
    ${scores.length > 0 && html`<${Table} label="Forecasts" rows=${scores} columns=${[
    { title: "Agent", cell: (one) => html`<${Text}>${label(String(one.agent))}<//>` },
    { title: "Forecast", cell: (one) => html`<${Text}>${label(String(one.forecast))}<//>` },
    { title: "Said", align: "right", cell: (one) => `${(100 * one.probability).toFixed(1)} %` },
    { title: "Happened", cell: (one) => (one.happened ? "yes" : "no") },
    { title: "Brier", align: "right", cell: (one) => Number(one.brier).toFixed(3) },
  ]} />`}<//>`;
}

/* Steps. */

/** Returns what a step did, in the words of `acp decision`. */
export function what({ kind, body }) {
  const agent = body.agent ?? "";
  switch (kind) {
    case "calls": return `asked: ${list(body.calls).map((call) => call.agent).join(", ")}`;
    case "call_answered": return `${agent} ${body.outcome ?? ""}`;
    case "call_intended": return `${agent} has not answered yet`;
    case "agent_failed": case "budget_exhausted": return `${agent}: ${kind.replaceAll("_", " ")}`;
    case "proposal": case "released": return `${kind}: ${body.action_type ?? ""}`;
    case "verdict": return `verdict: ${body.verdict ?? ""}`;
    case "shadow_verdict": return inShadow(body);
    case "execution": return `execution: ${body.outcome ?? ""}`;
    case "approval": return `${body.is_given ? "approved" : "denied"} by ${body.decided_by ?? ""}`;
    case "approval_asked": return "a person is asked to approve";
    case "state": case "closed": return `${kind}: ${body.state ?? ""}`;
    default: return kind.replaceAll("_", " ");
  }
}
/** Returns what policies in shadow would have said. */
function inShadow({ policy_sha256, errors, verdict, enforced }) {
  const which = `another policy (shadow${policy_sha256 ? `, ${hex(policy_sha256).slice(0, 8)}` : ""})`;
  if (list(errors).length) return `${which} could not be asked`;
  return `${which} would have said${verdict === enforced ? " the same" : ""}: ${verdict ?? ""}`;
}
const BELOW = new Set(["call_intended", "call_answered", "agent_failed", "budget_exhausted"]);
/** Returns the steps that are told: an answer tells its call, and a round's answers were told one by one. */
export function told(steps) {
  const ended = new Set(named(steps, "call_answered").map((step) => step.body.call_id));
  return steps.filter((step) => step.kind !== "answers"
    && !(step.kind === "call_intended" && ended.has(step.body.call_id)));
}
const WRONG = new Set(["agent_failed", "budget_exhausted"]);
const isWrong = ({ kind, body }) => WRONG.has(kind) || (kind === "call_answered" && body.outcome !== "answered")
  || (kind === "execution" && body.outcome !== "executed") || (kind === "verdict" && body.verdict === "refused");

function Step({ step, opened }) {
  const answer = step.kind === "call_answered" || step.kind === "proposal" ? parsed(step.output) : {};
  const body = step.kind === "anomaly" || step.kind === "joined"
    ? { ...step.body.payload, ...step.body.payload?.details, details: null } : step.body;
  const gave = step.kind === "call_answered" ? "Answer" : "Output";
  const tokens = [body.input_tokens, body.output_tokens].filter((one) => Number.isFinite(one)).map(count).join(" + ");
  return html`<li class=${BELOW.has(step.kind) ? "below" : undefined} id=${`step-${step.seq}`}><details><summary>
      <span class=${isWrong(step) ? "what wrong" : "what"}><${Text}>${what(step)}<//></span>
      ${step.body.error && html`<span class="said"><${Text}>${step.body.error.slice(0, 600)}<//></span>`}
      <span class="muted number">${step.cost_micros ? `${usd(step.cost_micros)}  `
        : ""}+${passed(opened, step.at).toFixed(1)} s</span></summary>
    <div class="inside"><${Fields} of=${answer} />${step.kind !== "call_answered" && html`<${Fields} of=${body} />`}
      <p class="muted">Step ${step.seq}, by ${step.author}, <${Instant} at=${step.at} absolute />${step.body.attempt
        ? `, attempt ${step.body.attempt}` : ""}${tokens && `, ${tokens} tokens`}</p>
      <div class="buttons"><${Artifact} sha256=${step.body.request_sha256} name="the request"
        of=${`step ${step.seq}`} />
        ${step.output === null && html`<${Artifact} sha256=${step.output_sha256} name="the output"
          of=${`step ${step.seq}`} />`}</div>
      ${step.output !== null && html`<h3>${gave}</h3>${Object.keys(parsed(step.output)).length
    ? html`<${Json} value=${parsed(step.output)} label=${`${gave} of step ${step.seq}`} />`
    : html`<pre class="json" tabindex="0" role="region"
      aria-label=${`${gave} of step ${step.seq}`}>${visible(step.output)}</pre>`}`}
      <details class="fold"><summary>As recorded</summary><${Json} value=${step.body}
        label=${`Record of step ${step.seq}`} /></details></div></details></li>`;
}

/* Asked again. */

function ReplayCheck({ id }) {
  const [state, setState] = useState({});
  const ask = async () => {
    if (state.busy) return;
    setState({ busy: true });
    try { setState({ said: await api("POST", `decisions/${id}/replay`) }); } catch (error) { setState({ error }); }
  };
  const { said } = state;
  const { kind, what: differing, field } = said?.difference ?? {};
  const where = [kind, differing, field].filter(Boolean).join(", ");
  return html`<${Section} name="Decide again"><p class="muted">Decides again from the record alone, with the network
    off, and compares every byte.</p>
    <p><button type="button" aria-disabled=${state.busy === true} onClick=${ask}>${state.busy ? "Deciding again …"
      : "Replay check"}</button></p>
    <div role="status"><${Trouble} error=${state.error} />
    ${said?.same === true && html`<p><${State} word="same"
      tone="good" /> ${count(said.steps)} steps and ${count(said.compared_bytes)} bytes, alike.</p>`}
    ${said?.same === null && html`<p><${State} word="not replayed" tone="warn" /> <${Text}>${said.needs?.detail
      ?? "It needs another release."}<//></p>`}
    ${said?.same === false && html`<p><${State} word="different" tone="bad" /> ${said.difference
    ? html`at <a href=${`#step-${said.difference.seq}`}>step ${said.difference.seq}</a>, <${Text}>${where}<//>, after ${
      count(said.steps)} steps alike` : "it asked for the network"}</p>
      ${said.difference && html`<dl class="facts"><dt>recorded</dt><dd><${Text}>${said.difference.recorded}<//></dd>
        <dt>decided now</dt><dd><${Text}>${said.difference.decided}<//></dd></dl>`}
      ${list(said.network).length > 0 && html`<p class="said">asked for the
        network: <${Text}>${said.network.join(", ")}<//></p>`}`}</div><//>`;
}
function OtherPolicy({ facts, steps }) {
  const [text, setText] = useState("");
  const [state, setState] = useState({});
  const recorded = newest(steps, "verdict")?.body.policy_sha256;
  const begin = async () => {
    try {
      const { base64 } = await api("GET", `artifacts/${hex(recorded)}`);
      setText(new TextDecoder().decode(Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))));
    } catch (error) { setState({ error }); }
  };
  const ask = async (event) => {
    event.preventDefault();
    if (state.busy) return;
    setState({ busy: true });
    try { setState({ said: await api("POST", "policies/test",
      { body: { policies: text, domain: facts.domain } }) }); } catch (error) { setState({ error }); }
  };
  const { said } = state;
  const mine = said?.rows.find((one) => one.decision_id === facts.decision_id);
  return html`<${Section} name="What another policy would have said"><form class="policy" onSubmit=${ask}>
      <label class="field"><span>Policies, in Cedar: they are held against the newest requests on record
        of ${visible(facts.domain)}. Nothing changes.</span>
        <textarea rows="6" required spellcheck=${false} maxlength="65536" value=${text}
          onInput=${(event) => setText(event.target.value)}></textarea></label>
      <div class="buttons"><button class="primary" aria-disabled=${state.busy === true}>${state.busy ? "Asking …"
        : "Ask"}</button>
        ${recorded && html`<button type="button" onClick=${begin}>Begin with the one that judged it</button>`}</div>
          </form>
    <div role="status"><${Trouble} error=${state.error} />
    ${said && html`<p><strong>${count(said.counts.same)} the same, ${count(said.counts.different)} different</strong> of
      the newest ${count(said.tried)} of ${count(said.recorded)} requests${
    said.stopped_by === "time" ? "; there was no time for more" : ""}.${said.unasked
      ? ` ${count(said.unasked)} verdicts fell before any policy was asked, and stay.` : ""}</p>
      <ul class="plain">${said.counts.moves.map((one) => html`<li>${count(one.count)} × <${State} word=${one.was}
        tone="idle" /> → <${State} word=${one.would_be} tone="warn" /></li>`)}</ul>
      ${said.rows.length > 0 && html`<${Table} label="Verdicts that would differ" rows=${said.rows}
        keyOf=${(one) => one.verdict_id} current=${mine?.verdict_id}
        href=${(one) => link("decision", { id: one.decision_id })} columns=${[
    { title: "Decision", cell: (one) => html`<${Text}>${one.entity_id}<//>` },
      { title: "Was", cell: (one) => one.was.replaceAll("_", " ") },
    { title: "Would be", cell: (one) => one.would_be.replaceAll("_", " ") },
      { title: "Because", cell: (one) => html`<${Text}>${[...list(one.reasons), ...list(one.errors)].join("; ")}<//>` },
    { title: "Judged", align: "right", cell: (one) => html`<${Instant} at=${one.judged_at} />` },
  ]} />`}`}</div><//>`;
}

/** A decision as a pane shows it, or a whole page. */
export function Detail({ id }) {
  const poll = usePoll(`decisions/${encodeURIComponent(id)}`, undefined, { seconds: 10 });
  if (!poll.data) return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
    : html`<p class="muted part">Reading …</p>`;
  const { decision: facts, steps } = poll.data;
  const proposal = newest(steps, "proposal");
  const anomaly = newest(steps, "anomaly")?.body.payload;
  const cost = steps.reduce((sum, step) => sum + step.cost_micros, 0);
  const wrong = steps.filter(isWrong).length;
  return html`<div class="detail">
    <section class="part headline" aria-label="What came of it"><${Came} facts=${facts} steps=${steps} poll=${poll} />
      ${proposal?.body.summary && html`<p class="summary"><${Text}>${proposal.body.summary}<//></p>`}
      <dl class="facts"><dt>opened by</dt><dd>${anomaly
        ? html`<${Text}>${facts.anomaly_kind}<//> ${Number.isFinite(anomaly.score)
          && html`<span class="number">score ${anomaly.score.toFixed(1)}, threshold ${anomaly.threshold}</span> `}`
            : ""}
          <${Id} value=${facts.trigger_event_id} view="event" /> ${anomaly?.bar_event_id
            && html`<a href=${link("event", { id: anomaly.bar_event_id })}>its bar</a>`}</dd>
        <dt>about</dt><dd><${Instant} at=${facts.occurred_at}
          absolute /> <span class="muted"><${Text}>${facts.series}<//></span></dd>
        ${proposal?.body.hypothesis && html`<dt>explanation</dt><dd><${Text}>${label(proposal.body.hypothesis)}<//>
          </dd>`}
        <dt>agents cost</dt><dd>${usd(cost)} of at most ${usd(facts.budget_micros)}</dd>
        <dt>time</dt><dd>${facts.closed_at ? spoken(passed(facts.opened_at, facts.closed_at))
          : html`opened <${Instant} at=${facts.opened_at} />,
            deadline <${Instant} at=${facts.deadline} />`}, ${count(steps.length)} steps${wrong
              ? `, ${wrong} of which went wrong` : ""}</dd>
        <dt>playbook</dt><dd><${Text}>${`${facts.playbook} ${facts.playbook_version}`}<//></dd>
        ${facts.superseded_by && html`<dt>superseded</dt><dd><${State} word="superseded"
          tone="warn" /> by <${Id} value=${facts.superseded_by} view="event" /></dd>`}
        ${facts.head_seq !== undefined && html`<dt>record</dt><dd>${facts.anchored_seq >= facts.head_seq
          ? html`<${State} word="anchored" tone="good" /> outside the database, whole`
    : `${count(facts.anchored_seq + 1)} of ${count(facts.head_seq + 1)} steps are anchored outside the database so far`}
          <span class="muted">Whether a step was changed is not checked here: <${Term}>acp audit verify<//> does, beside
            the
          database.</span></dd>`}
        <dt>decision</dt><dd><${Id} value=${facts.decision_id}
          view="decision" /> <a href=${link("events", { trace_id: facts.trace_id })}>all events of its run</a></dd></dl>
    </section>
    <${Verdicts} steps=${steps} /><${Options} steps=${steps} /><${Outcome} steps=${steps} />
    <${Section} name="Every step"><ol class="steps">${told(steps).map((step) => html`<${Step} key=${step.seq}
      step=${step} opened=${facts.opened_at} />`)}</ol><//>
    <${ReplayCheck} id=${facts.decision_id} /><${OtherPolicy} facts=${facts} steps=${steps} />
    <${Section} name="Spans"><${Waterfall} path=${`decisions/${facts.decision_id}`} /><//>
    <p class="muted part">In a terminal: <${Term}>acp decision ${facts.decision_id}<//></p></div>`;
}

export function View({ query }) {
  if (!query.id) return html`<${Empty}>The address names no decision. <a href=${link("decisions")}>All decisions</a>
    <//>`;
  return html`<${Split} list=${html`<article class="card whole"><${Detail} key=${query.id}
    id=${query.id} /></article>`} />`;
}
