/** What a job waits for: its place, the reason, and the jobs before it. */
import { href, segment } from "../../app/router";
import { count } from "../../components/format";
import { Text } from "../../components/Text";
import { type Queue, shortId } from "./types";

const SHOWN = 10;

export function Waiting({ queue }: { queue: Queue }) {
  const { before } = queue;
  const links = [...new Set([...before.same_model, ...before.own])];
  return (
    <section class={queue.waits ? "note warn" : "note"} aria-label="What the job waits for">
      <p class="reason">
        {queue.place !== null && <strong>Place {count(queue.place)} in the queue. </strong>}
        <Text value={queue.reason} />
      </p>
      {links.length > 0 && (
        <p class="small">
          Your jobs before it:{" "}
          {links.slice(0, SHOWN).map((id) => <a key={id} class="mono before" href={href(`/jobs/${segment(id)}`)}>{shortId(id)}</a>)}
          {links.length > SHOWN && `and ${count(links.length - SHOWN)} more`}
        </p>
      )}
      {before.num_others > 0 && <p class="small">{count(before.num_others)} queued {before.num_others === 1 ? "job" : "jobs"} of other entities begin before it.</p>}
    </section>
  );
}
