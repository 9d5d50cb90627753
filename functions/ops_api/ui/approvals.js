/** Approvals: what a person is asked, in plain words, and the answer. */
import {
  Duration, Empty, Id, Instant, More, Split, Stale, State, Table, Text, Trouble, api, count, html, link, newKey,
  useEffect, useNow, usePages, usePoll, useRef, useSession, useState, visible,
} from "#kit";
import { Act, Clock, Facts, Lacking, Name, lacking } from "#views/operating";

export const title = "Approvals";

/** The first line of what is shown says what would be done. */
const headline = (shown) => shown.split("\n", 1)[0];

function Left({ until }) {
  const seconds = (new Date(until).getTime() - useNow()) / 1000;
  return seconds > 0 ? html`<span class=${seconds < 120 ? "left soon"
    : "left"}><${Duration} seconds=${seconds} /> left</span>`
    : html`<span class="left">its time is over</span>`;
}

export function View({ query }) {
  const pages = usePages("approvals", undefined, { seconds: 5, keyOf: (one) => one.approval_id });
  const columns = [
    { title: "What would be done", cell: (one) => html`<span class="cut"><${Text}>${headline(one.shown)}<//></span>` },
    { title: "For", width: 120, wide: true, cell: (one) => html`<${Name}>${one.entity_id}<//>` },
    { title: "Playbook", width: 140, wide: true, cell: (one) => html`<${Name}>${one.playbook}<//>` },
    { title: "Asked", width: 90, wide: true, cell: (one) => html`<${Instant} at=${one.requested_at} />` },
    { title: "Time", width: 120, cell: (one) => html`<${Left} until=${one.expires_at} />` },
  ];
  const list = html`
    <div class="acts"><span class="muted">The most urgent first. Silence is a no.</span><span class="push">
      <${Stale} poll=${pages} /></span></div>
    <${Lacking} scope="approve" what="answer" />
    <${Trouble} error=${pages.items.length ? null : pages.error} retry=${pages.reload} />
    ${pages.items.length > 0
      ? html`<${Table} label="Approvals" columns=${columns} rows=${pages.items} keyOf=${(one) => one.approval_id}
        current=${query.id}
          href=${(one) => link("approvals", { id: one.approval_id })} /><${More} pages=${pages} />`
      : !pages.busy && !pages.error && html`<${Empty}>Nothing waits for an approval.<//>`}`;
  const detail = query.id ? html`<${Approval} key=${query.id} id=${query.id} answered=${pages.reload} />` : null;
  return html`<${Split} list=${list} detail=${detail} title="Approval" closeHref=${link("approvals")} />`;
}

function Approval({ id, answered }) {
  const poll = usePoll(`approvals/${encodeURIComponent(id)}`, undefined, { seconds: 5 });
  const request = poll.data;
  // Its steps say what policy said; an approval can be answered without them.
  const tree = usePoll(request ? `decisions/${request.decision_id}` : null, undefined, { seconds: 10 });
  useNow();
  if (!request) return poll.error ? html`<${Trouble} error=${poll.error} retry=${poll.reload} />`
    : html`<p class="muted">Reading …</p>`;
  const isAnswered = request.is_given !== null;
  const isOver = new Date(request.expires_at) <= Date.now();
  const verdict = tree.data?.steps.findLast((step) => step.kind === "verdict"
    && step.body.verdict === "needs_approval")?.body;
  const reload = () => { poll.reload(); answered(); };
  return html`<div class="approval-pane">
    <h3><${Text}>${headline(request.shown)}<//></h3>
    <p class="standing">${isAnswered
      ? html`<${State} word=${request.is_given ? "approved"
        : "denied"} /> <span>by <${Text}>${request.decided_by}<//>, <${Instant} at=${request.decided_at} />${
          request.reason && html`: <${Text}>${request.reason}<//>`}</span>`
      : isOver ? html`<${State} word="expired" /> <span>Nobody answered: nothing is done.</span>`
      : html`<${State} word="awaiting_approval" /> <span>
        <${Left} until=${request.expires_at} />, until <${Clock} at=${request.expires_at} /></span>`}</p>
    <${Shown} text=${request.shown} />
    <h4>What policy said</h4>
    ${verdict ? html`<ul>${verdict.reasons.map((reason) => html`<li key=${reason}><${Text}>${reason.replace(/^policy: /,
      "")}<//></li>`)}</ul>`
      : html`<p class="muted">${tree.data ? "It is not on record." : tree.error ? "It cannot be read now."
        : "Reading …"}</p>`}
    ${!isAnswered && !isOver && html`<${Answer} request=${request} done=${reload} />`}
    <h4>What follows</h4>
    <dl class="pairs">
      <div><dt>Approved</dt><dd>It is judged once more by the policy of that moment, and released if nothing speaks
        against it.</dd></div>
      <div><dt>Denied</dt><dd>It is never done. The decision goes on to be scored by what happens.</dd></div>
      <div><dt>No answer</dt><dd>The same as a no, from <${Clock} at=${request.expires_at} /> on.</dd></div></dl>
    <h4>Where it comes from</h4>
    <${Facts} rows=${[
      ["Decision", html`<${Id} value=${request.decision_id} view="decision" /> ${request.decision_state
        && html`<${State} word=${request.decision_state} />`}`],
      ["About", request.entity_id],
      ["Playbook", `${request.playbook} of ${request.domain}`],
      ["Proposed by", request.proposed_by],
      ["Asked", html`<${Instant} at=${request.requested_at} />`],
      ["Action's hash", html`<${Id} value=${request.action_sha256} />`],
      ["Steps", tree.data && count(tree.data.steps.length)],
    ]} /></div>`;
}

/** Approves or denies exactly what is shown, by its hash; both take a reason, so that neither is a slip of the hand. */
function Answer({ request, done }) {
  useSession();
  const field = useRef();
  const key = useRef(newKey());
  const [reason, setReason] = useState("");
  const [state, setState] = useState({ busy: false, error: null });
  // On a narrow screen the field is below what must be read first, and a keyboard would cover that.
  useEffect(() => { if (matchMedia("(min-width: 721px)").matches) field.current?.focus({ preventScroll: true }); }, []);
  const answer = async (gives) => {
    if (state.busy) return;
    setState({ busy: true, error: null });
    try {
      await api("POST", `approvals/${request.approval_id}`, {
        body: { gives, action_sha256: request.action_sha256, reason: reason.trim() }, key: key.current });
      done();
    } catch (error) {
      if (error.status !== 0) key.current = newKey();
      setState({ busy: false, error });
    }
  };
  const off = state.busy ? "it is being sent" : reason.trim() ? "" : "say why first";
  return html`<form class="answer" onSubmit=${(event) => event.preventDefault()} aria-label="Answer">
    <label class="field"><span>Why? It is kept on record.</span>
      <input ref=${field} name="reason" maxlength="1000" autocomplete="off" value=${reason}
        disabled=${lacking("approve") !== ""}
        onInput=${(event) => setReason(event.currentTarget.value)} /></label>
    <p class="acts"><${Act} scope="approve" kind="primary" off=${off} onClick=${() => answer(true)}>Approve<//>
      <${Act} scope="approve" kind="danger" off=${off} onClick=${() => answer(false)}>Deny<//>
      ${!reason.trim() && !lacking("approve") && html`<span class="muted">Say why first.</span>`}</p>
    <${Lacking} scope="approve" what="answer" />
    <${Trouble} error=${state.error} /></form>`;
}

/**
 * What the gatekeeper shows an approver, in its own order and words: facts that it computed, then agents' prose, of
 * which each line is marked. Nothing that is not marked is shown as prose, and nothing that is marked as anything else.
 */
function Shown({ text }) {
  const parts = [];
  const last = (kind) => parts.at(-1)?.kind === kind ? parts.at(-1) : parts[parts.push({ kind, lines: [] }) - 1];
  for (const line of text.split("\n").slice(1)) {
    const fact = /^ {2}([^|! ]\S*(?: \S+)*?) {2,}(.*)$/.exec(line) ?? /^ {2}([^|! ]\S*) (.*)$/.exec(line);
    if (line.startsWith("  | ")) last("prose").lines.push(line.slice(4));
    else if (line.startsWith("  ! ")) last("unsupported").lines.push(line.slice(4));
    else if (fact) last("facts").lines.push([fact[1], fact[2]]);
    else parts.push({ kind: "title", lines: [line] });
  }
  return html`<section class="asked-for" aria-label="What is asked">${parts.map(({ kind, lines }, place) => ({
    title: () => html`<h4 key=${place}><${Text}>${lines[0]}<//></h4>`,
    facts: () => html`<${Facts} key=${place} rows=${lines} />`,
    prose: () => html`<blockquote key=${place}><${Text}>${lines.join(" ")}<//></blockquote>`,
    unsupported: () => html`<ul key=${place}>${lines.map((line) => html`<li key=${line}>${visible(line)}</li>`)}</ul>`,
  })[kind]())}
  <details class="fold"><summary>As it was recorded</summary><pre class="json"
    tabindex="0">${visible(text).replaceAll("\\u000a", "\n")}</pre></details></section>`;
}
