/** Says whether the view follows the service live. Nothing while no view does. */
import { liveProblem, liveState } from "../app/live";
import { plain } from "./Text";

const LABELS = { connecting: "connecting", live: "live", reconnecting: "reconnecting" };

export function LiveMark() {
  const state = liveState.value;
  if (state === "off") return null;
  const problem = liveProblem.value;
  return (
    <span class={`live ${state}`} role="status" title={problem ? plain(problem) : "Changes appear as they happen."}>
      <span aria-hidden="true" class="dot" /> {LABELS[state]}
    </span>
  );
}
