/** A training job, live: errors first, then what it waits for, its steps, and all that it was posted with. */
import { useState } from "preact/hooks";
import { post } from "../../app/api";
import { useReloads } from "../../app/live";
import { useGet, usePages } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { AlertMark } from "../../components/AlertMark";
import { StateBadge } from "../../components/Badge";
import { CopyButton } from "../../components/CopyButton";
import { Confirm } from "../../components/Dialog";
import { ErrorBox } from "../../components/ErrorBox";
import { duration } from "../../components/format";
import { Loaded } from "../../components/Loaded";
import { Text } from "../../components/Text";
import { now, Time } from "../../components/Time";
import { Timeline } from "../../components/Timeline";
import type { Model } from "../models/types";
import { Artifacts, Events, Options, Trained } from "./Details";
import { Failure } from "./Failure";
import { Steps } from "./Steps";
import { type Job as JobData, type JobEvent, isOpen, type Queue, secondsBetween, shortId } from "./types";
import { Waiting } from "./Waiting";

const KINDS: Record<string, string> = { rl: "Reinforcement learning", sft: "Supervised fine-tuning", dpo: "Preference pairs" };

export function Job({ params }: ViewProps) {
  const id = params["id"] ?? "";
  const at = `v1/preview/training-jobs/${segment(id)}`;
  const job = useGet<JobData>(at);
  const queue = useGet<Queue>(`${at}/queue`);
  const events = usePages<JobEvent>(`${at}/events`, {}, 1000);
  useReloads({ kinds: ["job", "event"], job: id }, () => {
    for (const part of [job, queue, events]) part.reload();
  });
  // Another job that starts or ends moves this one in the queue.
  useReloads({ kinds: ["job"] }, () => job.data?.state === "queued" && queue.reload());
  return (
    <Loaded of={job}>
      {(found) => (
        <>
          <Head job={found} onChange={job.reload} />
          <Failure job={found} event={events.items.find((event) => event.type === "training_failed")} />
          {isOpen(found) && <Loaded of={queue}>{(place) => <Waiting queue={place} />}</Loaded>}
          {events.error && <ErrorBox error={events.error} onRetry={events.reload} />}
          <h2>Where the time went</h2>
          <Timeline jobId={found.id} />
          <Steps events={events.items} />
          <div class="columns">
            <Trained job={found} />
            <Options job={found} />
          </div>
          <Events events={events.items} />
          {events.hasMore && <button type="button" onClick={events.more}>More events</button>}
          <Artifacts job={found} />
        </>
      )}
    </Loaded>
  );
}

function Head({ job, onChange }: { job: JobData; onChange: () => void }) {
  const model = useGet<Model>(`v1/preview/models/${segment(job.model_id)}`);
  const to = `/models/${segment(job.model_id)}`;
  const ran = secondsBetween(job.started_at, job.ended_at, now.value);
  const waited = secondsBetween(job.created_at, job.started_at ?? job.ended_at, now.value);
  return (
    <>
      <h1>Job <span class="mono">{shortId(job.id)}</span> <StateBadge state={job.state} /> <AlertMark job={job.id} /></h1>
      <div class="row">
        <a class="button" href={href(to)}>{model.data ? <Text value={`${model.data.project}/${model.data.name}`} max={50} /> : "Model"}</a>
        {job.step !== null && <a class="button" href={href(`${to}/groups`, { step: job.step })}>Groups of version {job.step}</a>}
        {job.step !== null && <a class="button" href={href(`${to}/versions`)}>Versions</a>}
        <CopyButton text={job.id} label="Copy id" />
        {isOpen(job) && <Cancel job={job} onDone={onChange} />}
      </div>
      <dl class="facts">
        <dt>Kind</dt><dd>{KINDS[job.kind] ?? job.kind}</dd>
        <dt>Accepted</dt><dd><Time at={job.created_at} />{waited !== null && <span class="muted">, waited {duration(waited)}</span>}</dd>
        {job.started_at && <><dt>Started</dt><dd><Time at={job.started_at} />{ran !== null && <span class="muted">, {isOpen(job) ? "runs for" : "ran"} {duration(ran)}</span>}</dd></>}
        {job.ended_at && <><dt>Ended</dt><dd><Time at={job.ended_at} /></dd></>}
        <dt>Attempts</dt><dd>{job.attempt}</dd>
        <dt>Gradient steps</dt><dd>{job.num_gradient_steps}</dd>
      </dl>
    </>
  );
}

function Cancel({ job, onDone }: { job: JobData; onDone: () => void }) {
  const [asks, setAsks] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  if (job.cancel_requested) return <span class="muted">It is being cancelled.</span>;

  async function cancel(): Promise<void> {
    setBusy(true);
    setError(null);
    try {
      await post(`v1/preview/training-jobs/${segment(job.id)}/cancel`, {});
      setAsks(false);
      onDone();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }

  return (
    <>
      <button type="button" class="danger" onClick={() => setAsks(true)}>Cancel job…</button>
      {asks && (
        <Confirm title="Cancel this job?" action="Cancel the job" busy={busy} onClose={() => setAsks(false)} onConfirm={() => void cancel()}>
          <p>{job.state === "queued" ? "It leaves the queue at once." : "It ends before its next gradient step."} It makes no version, and can't be continued.</p>
          {error && <ErrorBox error={error} />}
        </Confirm>
      )}
    </>
  );
}
