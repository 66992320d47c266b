/** One fine-tuning job: its state, the models that it made, and its events as they come. */
import { useEffect } from "preact/hooks";
import { post } from "../../app/api";
import { useGet, usePages } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Badge } from "../../components/Badge";
import { CopyButton } from "../../components/CopyButton";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loaded } from "../../components/Loaded";
import { Table } from "../../components/Table";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { count, number } from "../../components/format";
import { saveFile } from "../../components/saveFile";
import { isOpen, isoTime, toneOf, type FineTuningJob, type JobCheckpoint, type JobEvent } from "./types";

const REFRESH_MS = 3000;

export function FineTuningJobView({ params }: ViewProps) {
  const path = `v1/fine_tuning/jobs/${segment(params["id"] ?? "")}`;
  const job = useGet<FineTuningJob>(path);
  const events = usePages<JobEvent>(`${path}/events`);
  const checkpoints = usePages<JobCheckpoint>(`${path}/checkpoints`);
  const open = job.data !== null && isOpen(job.data);
  function reload(): void {
    job.reload();
    events.reload();
    checkpoints.reload();
  }
  useEffect(() => {
    if (!open) return;
    const timer = setInterval(reload, REFRESH_MS);
    return () => clearInterval(timer);
  }, [open, path]);
  return (
    <>
      <p><a href={href("/fine-tuning")}>Fine-tuning</a></p>
      <Loaded of={job}>
        {(found) => (
          <>
            <h1>{found.id}</h1>
            <div class="row">
              <Badge tone={toneOf(found.status)}>{found.status.replace("_", " ")}</Badge>
              <span class="muted">created <Time at={isoTime(found.created_at)} />{found.finished_at !== null && <>, ended <Time at={isoTime(found.finished_at)} /></>}</span>
              <span class="grow" />
              {open && <ActionButton kind="danger" onAction={async () => (await post(`${path}/cancel`, undefined), reload())}>Cancel the job</ActionButton>}
            </div>
            {found.error && <p class="note bad"><Text value={found.error.message} /> <span class="muted">Code {found.error.code}{found.error.param && <>, field <Text value={found.error.param} /></>}</span></p>}
            <Facts job={found} />
          </>
        )}
      </Loaded>
      <h2>Checkpoints</h2>
      {checkpoints.error && <ErrorBox error={checkpoints.error} onRetry={checkpoints.reload} />}
      {checkpoints.items.length === 0 && !checkpoints.loading && <Empty title="None yet">Each can be used as a model, also while the job runs.</Empty>}
      {checkpoints.items.length > 0 && (
        <Table
          label="Checkpoints"
          rows={checkpoints.items}
          rowKey={(one) => one.id}
          hasMore={checkpoints.hasMore}
          onEnd={checkpoints.more}
          columns={[
            { key: "model", label: "Model", cell: (one) => <><code><Text value={one.fine_tuned_model_checkpoint} max={70} /></code> <CopyButton text={one.fine_tuned_model_checkpoint} of="the model's name" /></> },
            { key: "chat", label: "", cell: (one) => <a href={href("/playground", { a: one.fine_tuned_model_checkpoint })}>Chat</a> },
            { key: "step", label: "Gradient steps", align: "right", cell: (one) => one.step_number },
            { key: "loss", label: "Loss", align: "right", wide: true, cell: (one) => number(one.metrics["train_loss"] ?? one.metrics["loss"]) },
            { key: "created", label: "Created", wide: true, cell: (one) => <Time at={isoTime(one.created_at)} /> },
          ]}
        />
      )}
      <h2>Events</h2>
      {events.error && <ErrorBox error={events.error} onRetry={events.reload} />}
      {events.items.length > 0 && (
        <Table
          label="Events, the newest first"
          rows={events.items}
          rowKey={(event) => event.id}
          hasMore={events.hasMore}
          onEnd={events.more}
          columns={[
            { key: "time", label: "When", width: "110px", cell: (event) => <Time at={isoTime(event.created_at)} /> },
            { key: "level", label: "Level", width: "80px", cell: (event) => (event.level === "info" ? "info" : <Badge tone={event.level === "error" ? "bad" : "warn"}>{event.level}</Badge>) },
            { key: "message", label: "Event", cell: (event) => <Text value={event.message} max={300} /> },
          ]}
        />
      )}
    </>
  );
}

function Facts({ job }: { job: FineTuningJob }) {
  const settings = job.method[job.method.type];
  return (
    <dl class="facts">
      <dt>Method</dt>
      <dd>{job.method.type} <code><Text value={JSON.stringify(settings ?? {})} max={500} /></code></dd>
      <dt>Starts from</dt>
      <dd><Text value={job.model} /></dd>
      {job.fine_tuned_model && (
        <>
          <dt>Made</dt>
          <dd><code><Text value={job.fine_tuned_model} /></code> <CopyButton text={job.fine_tuned_model} label="Use this name" /> <a href={href("/playground", { a: job.fine_tuned_model })}>Chat</a></dd>
        </>
      )}
      <dt>Training file</dt>
      <dd><FileOf id={job.training_file} /></dd>
      {job.validation_file && <><dt>Validation file</dt><dd><FileOf id={job.validation_file} /></dd></>}
      {job.result_files.map((id) => [<dt key={id}>Result file</dt>, <dd key={`${id} link`}><FileOf id={id} /></dd>])}
      <dt>Seed</dt>
      <dd>{job.seed}</dd>
      {job.trained_tokens !== null && <><dt>Trained tokens</dt><dd>{count(job.trained_tokens)}</dd></>}
      {job.metadata && <><dt>Metadata</dt><dd><code><Text value={JSON.stringify(job.metadata)} max={500} /></code></dd></>}
    </dl>
  );
}

function FileOf({ id }: { id: string }) {
  return <><code><Text value={id} /></code> <ActionButton kind="quiet" label={`Download ${id}`} onAction={() => saveFile(`/v1/files/${id}/content`)}>Download</ActionButton></>;
}
