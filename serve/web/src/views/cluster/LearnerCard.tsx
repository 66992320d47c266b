/** The learners of a base model: state, jobs, speed, memory and publications. */
import { href, segment } from "../../app/router";
import { Badge, type Tone } from "../../components/Badge";
import { bytes, compact, count, duration, percent } from "../../components/format";
import { Meter } from "../../components/Meter";
import { plain, Text } from "../../components/Text";
import type { Learner, Learners } from "./types";

const TONES: Record<Learners["state"], Tone> = { running: "good", waiting: "warn", not_started: "neutral", not_answering: "bad" };

export function LearnerCard({ learners }: { learners: Learners }) {
  const { publications } = learners;
  return (
    <section class="card" aria-label={`Learners of ${plain(learners.id)}`}>
      <header class="row">
        <span class="grow"><Text value={learners.sentence} /></span>
        <Badge tone={TONES[learners.state]}>{learners.state.replace("_", " ")}</Badge>
      </header>
      {learners.alarm && <p class="note bad"><Text value={learners.alarm} /></p>}
      {learners.last_error && <p class="note bad">The coordinator's last error: <Text value={learners.last_error} max={1000} /></p>}
      <div class="grid narrow">{learners.learners.map((learner) => <Rank key={learner.rank} learner={learner} />)}</div>
      <dl class="facts small">
        <dt>Jobs that run</dt>
        <dd><Jobs learners={learners} /></dd>
        <dt>Publishing</dt>
        <dd>
          {publications.p50_s === null || publications.p95_s === null || publications.last_s === null
            ? "nothing since the start"
            : `${duration(publications.last_s)} last; of ${count(publications.count)}, half within ${duration(publications.p50_s)}, 95 % within ${duration(publications.p95_s)}`}
        </dd>
      </dl>
    </section>
  );
}

function Rank({ learner }: { learner: Learner }) {
  const { memory } = learner;
  return (
    <div class="rank">
      <p>
        <strong>Learner {learner.rank}</strong>{" "}
        <span class="muted">
          <Text value={[learner.device, `on ${learner.node}`, learner.gpus.length ? `GPU ${learner.gpus.join(", ")}` : ""].filter(Boolean).join(" ")} />
        </span>
      </p>
      {!learner.is_answering && <p class="note warn">It doesn't answer now.</p>}
      {learner.tokens_per_s !== null && (
        <p class="speed">
          {compact(learner.tokens_per_s)} tokens/s{learner.mfu === null ? "" : `, ${percent(learner.mfu)} MFU`} <span class="muted">in the last step</span>
        </p>
      )}
      {memory && <Meter label="Peak memory" share={memory.peak / memory.total} warnFrom={0.97}>{bytes(memory.peak)} of {bytes(memory.total)}</Meter>}
    </div>
  );
}

function Jobs({ learners }: { learners: Learners }) {
  if (!learners.own_jobs.length && !learners.other_jobs) return <>none</>;
  return (
    <ul class="plain chips">
      {learners.own_jobs.map((job) => (
        <li key={job.job_id}><a class="mono" href={href(`/jobs/${segment(job.job_id)}`)}>{job.job_id.slice(0, 8)}</a></li>
      ))}
      {learners.other_jobs > 0 && <li class="muted">{learners.own_jobs.length ? "and " : ""}{count(learners.other_jobs)} of others</li>}
    </ul>
  );
}
