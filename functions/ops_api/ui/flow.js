/** The flow: seven stages from the source to the action, and what needs a person. */
import { Trouble, html, usePoll } from "#kit";

export const title = "Flow";

export function View() {
  const poll = usePoll("flow", {}, { seconds: 2 });
  return html`<${Trouble} error=${poll.data ? null : poll.error} retry=${poll.reload} />
    <section aria-label="Stages"></section>`;
}
