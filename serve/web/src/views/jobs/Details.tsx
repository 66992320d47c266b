/** What trained and what didn't, the options of a job, its events and files. */
import { download } from "../../app/api";
import { usePages } from "../../app/resource";
import { segment } from "../../app/router";
import { useState } from "preact/hooks";
import { ErrorBox } from "../../components/ErrorBox";
import { bytes, count, number } from "../../components/format";
import { type Column, Table } from "../../components/Table";
import { plain, Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { type Artifact, type Job, type JobEvent, REASONS } from "./types";

export function Trained({ job }: { job: Job }) {
  const lost = Object.entries(job.not_trained);
  const tokens = Object.entries(job.untrainable_tokens);
  if (!job.trained && lost.length === 0 && job.warnings.length === 0) return null;
  return (
    <section aria-labelledby="trained">
      <h2 id="trained">What trained</h2>
      <dl class="facts">
        {Object.entries(job.trained ?? {}).map(([name, value]) => <Fact key={name} name={name} value={value} />)}
        {(job.retokenised_tokens ?? 0) > 0 && <Fact name="retokenised tokens" value={job.retokenised_tokens ?? 0} />}
      </dl>
      {lost.length > 0 && (
        <>
          <h3>What didn't</h3>
          <dl class="facts">
            {lost.map(([reason, value]) => <Fact key={reason} name={REASONS[reason] ?? reason} value={value} />)}
          </dl>
        </>
      )}
      {tokens.length > 0 && (
        <>
          <h3>Tokens that can't train</h3>
          <dl class="facts">{tokens.map(([reason, value]) => <Fact key={reason} name={REASONS[reason] ?? reason} value={value} />)}</dl>
        </>
      )}
      {job.warnings.map((warning) => <p key={warning} class="note warn"><Text value={warning} /></p>)}
    </section>
  );
}

function Fact({ name, value }: { name: string; value: number }) {
  return (
    <>
      <dt>{plain(name)}</dt>
      <dd>{count(value)}</dd>
    </>
  );
}

export function Options({ job }: { job: Job }) {
  const set = Object.entries(job.options);
  return (
    <section aria-labelledby="options">
      <h2 id="options">Options</h2>
      {set.length === 0 ? <p class="muted">The post set none; all have their defaults.</p> : (
        <dl class="facts">
          {set.map(([name, value]) => (
            <>
              <dt key={name}><code><Text value={name} /></code></dt>
              <dd key={`${name} value`}><Text value={typeof value === "string" ? value : JSON.stringify(value)} max={400} /></dd>
            </>
          ))}
        </dl>
      )}
    </section>
  );
}

export function Events({ events }: { events: readonly JobEvent[] }) {
  const columns: Column<JobEvent>[] = [
    { key: "time", label: "Time", width: "130px", cell: (event) => <Time at={event.created_at} /> },
    { key: "type", label: "Event", width: "170px", cell: (event) => <Text value={event.type.replaceAll("_", " ")} /> },
    { key: "data", label: "Data", cell: (event) => <Text value={described(event)} max={300} /> },
  ];
  return (
    <section aria-labelledby="events">
      <h2 id="events">Events</h2>
      {events.length === 0 ? <p class="muted">None yet.</p> : (
        <Table label="Events" columns={columns} rows={events} rowKey={(event) => event.id} rowHeight={30} height={events.length > 10 ? "320px" : undefined} />
      )}
    </section>
  );
}

function described({ data }: JobEvent): string {
  const sentence = data["message"] ?? data["error_message"] ?? data["reason"];
  if (typeof sentence === "string") return sentence;
  return Object.entries(data).map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : JSON.stringify(value)}`).join(", ");
}

export function Artifacts({ job }: { job: Job }) {
  const files = usePages<Artifact>(`v1/preview/training-jobs/${segment(job.id)}/artifacts`);
  const [error, setError] = useState<Error | null>(null);
  if (files.items.length === 0 && !files.error) return null;

  async function save(name: string): Promise<void> {
    try {
      await download(`v1/preview/training-jobs/${segment(job.id)}/artifacts/${segment(name)}`, name);
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
  }

  return (
    <section aria-labelledby="files">
      <h2 id="files">Files</h2>
      {(files.error ?? error) && <ErrorBox error={files.error ?? (error as Error)} />}
      <ul class="plain">
        {files.items.map((file) => (
          <li key={file.id}><button type="button" class="quiet" onClick={() => void save(file.id)}>{plain(file.id)}</button> <span class="muted">{bytes(file.size_bytes)}</span></li>
        ))}
      </ul>
      {files.hasMore && <button type="button" onClick={files.more}>More files</button>}
    </section>
  );
}
