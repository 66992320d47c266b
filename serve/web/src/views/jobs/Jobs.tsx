/** The list of training jobs, live. */
import { useMemo } from "preact/hooks";
import { useReloads } from "../../app/live";
import { usePages } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { StateBadge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Field } from "../../components/Field";
import { duration } from "../../components/format";
import { Loading } from "../../components/Loading";
import { type Column, Table } from "../../components/Table";
import { plain, Text } from "../../components/Text";
import { now, Time } from "../../components/Time";
import type { Model } from "../models/types";
import { type Job, secondsBetween, shortId } from "./types";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];
const KINDS: [string, string][] = [["rl", "reinforcement learning"], ["sft", "supervised"], ["dpo", "preferences"]];

export function Jobs({ query }: ViewProps) {
  const chosen = { state: query.get("state"), kind: query.get("kind"), model_id: query.get("model") };
  const jobs = usePages<Job>("v1/preview/training-jobs", chosen);
  const models = usePages<Model>("v1/preview/models", { order: "desc" });
  useReloads({ kinds: ["job"] }, jobs.reload);
  const names = useMemo(() => new Map(models.items.map((model) => [model.id, `${model.project}/${model.name}`])), [models.items]);
  const isFiltered = Object.values(chosen).some(Boolean);
  return (
    <>
      <h1>Jobs</h1>
      <div class="row filters">
        <Choice label="State" name="state" value={chosen.state} options={STATES.map((state) => [state, state])} />
        <Choice label="Kind" name="kind" value={chosen.kind} options={KINDS} />
        <Choice label="Model" name="model" value={chosen.model_id} options={modelOptions(chosen.model_id, names)} />
        {models.hasMore && <button type="button" class="quiet" onClick={models.more}>More models</button>}
        {isFiltered && <button type="button" class="quiet" onClick={() => setQuery({ state: null, kind: null, model: null })}>Show all</button>}
      </div>
      {jobs.error && <ErrorBox error={jobs.error} onRetry={jobs.reload} />}
      {jobs.loading && jobs.items.length === 0 && <Loading />}
      {!jobs.loading && !jobs.error && jobs.items.length === 0 && (
        isFiltered ? <Empty title="No job fits">Choose other filters.</Empty>
          : <Empty title="There are no jobs yet">A job trains a model on trajectories. <a href="#/start">Start</a> has the lines to copy.</Empty>
      )}
      {jobs.items.length > 0 && (
        <Table
          label="Training jobs"
          columns={columns(names)}
          rows={jobs.items}
          rowKey={(job) => job.id}
          hasMore={jobs.hasMore}
          onEnd={jobs.more}
        />
      )}
    </>
  );
}

function modelOptions(chosen: string | null, names: ReadonlyMap<string, string>): [string, string][] {
  const options: [string, string][] = [...names].map(([id, name]) => [id, plain(name)]);
  return chosen === null || names.has(chosen) ? options : [[chosen, `model ${shortId(chosen)}`], ...options];
}

function Choice({ label, name, value, options }: { label: string; name: string; value: string | null; options: [string, string][] }) {
  return (
    <Field label={label}>
      <select value={value ?? ""} onChange={(event) => setQuery({ [name]: event.currentTarget.value || null })}>
        <option value="">all</option>
        {options.map(([id, text]) => <option key={id} value={id}>{text}</option>)}
      </select>
    </Field>
  );
}

function columns(names: ReadonlyMap<string, string>): Column<Job>[] {
  return [
    { key: "job", label: "Job", width: "110px", cell: (job) => <a class="mono" href={href(`/jobs/${segment(job.id)}`)}>{shortId(job.id)}</a> },
    { key: "state", label: "State", width: "120px", cell: (job) => <StateBadge state={job.state} /> },
    { key: "model", label: "Model", cell: (job) => <a href={href(`/models/${segment(job.model_id)}`)}><Text value={names.get(job.model_id) ?? shortId(job.model_id)} max={50} /></a> },
    { key: "kind", label: "Kind", width: "70px", wide: true, cell: (job) => job.kind },
    { key: "step", label: "Version", align: "right", width: "90px", wide: true, cell: (job) => job.step ?? <span class="muted">–</span> },
    { key: "seconds", label: "Ran", align: "right", width: "110px", wide: true, cell: (job) => ran(job) },
    { key: "created", label: "Accepted", width: "130px", cell: (job) => <Time at={job.created_at} /> },
    { key: "note", label: "Note", wide: true, cell: (job) => note(job) },
  ];
}

function ran(job: Job) {
  const seconds = secondsBetween(job.started_at, job.ended_at, now.value);
  return seconds === null ? <span class="muted">–</span> : duration(seconds);
}

function note(job: Job) {
  const text = job.error ?? (job.waiting_for ? `waits: ${job.waiting_for}` : (job.warnings[0] ?? ""));
  return <Text value={text} max={120} />;
}
