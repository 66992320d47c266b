/** Why a job failed, and what to do: first on its view. */
import { Text } from "../../components/Text";
import type { Job, JobEvent } from "./types";

const STAGES: Record<string, string> = {
  prepare: "reading the data and turning it into tokens",
  start_learners: "starting the learners",
  load: "loading the version that the job starts from",
  score: "computing logprobs before the first step",
  step: "a gradient step",
  checkpoint: "writing the checkpoint",
  compare_engine: "comparing the engine with the learners",
};

/** What the event of the failure says; jobs of older releases have one sentence alone. */
interface Said {
  stage: string | null;
  cause: string;
  remedy: string | null;
}

function said(error: string, event: JobEvent | undefined): Said {
  const { stage, cause, remedy } = event?.data ?? {};
  if (typeof stage === "string" && typeof cause === "string") {
    return { stage, cause, remedy: typeof remedy === "string" && remedy ? remedy : null };
  }
  const found = /^Stage '(\w+)' failed: (.*)$/s.exec(error);
  return { stage: found?.[1] ?? null, cause: found?.[2] ?? error, remedy: null };
}

export function Failure({ job, event }: { job: Job; event: JobEvent | undefined }) {
  if (job.error === null) return null;
  if (job.state === "queued" || job.state === "running") {
    return <p class="note warn">An earlier attempt ended, and the job is tried again: <Text value={job.error} /></p>;
  }
  if (job.state !== "failed") return job.state === "cancelled" ? <p class="note"><Text value={job.error} /></p> : null;
  const { stage, cause, remedy } = said(job.error, event);
  return (
    <section class="error-box" role="alert" aria-label="Why the job failed">
      <h2>{stage ? <>Failed in stage <code><Text value={stage} /></code>{STAGES[stage] && `, ${STAGES[stage]}`}</> : "The job failed"}</h2>
      <p><Text value={cause} /></p>
      <p>
        <strong>What to do:</strong>{" "}
        {remedy ? <Text value={remedy} /> : "The sentence above says what was wrong. Correct it, and post the job again; the model's versions are as they were before it."}
      </p>
    </section>
  );
}
