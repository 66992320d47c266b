/** One saved configuration: its settings, its jobs, and starting another. */
import { useState } from "preact/hooks";
import { del, post } from "../../app/api";
import { useGet } from "../../app/resource";
import { go, href, segment, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Dialog } from "../../components/Dialog";
import { Field } from "../../components/Field";
import { Loaded } from "../../components/Loaded";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { JobsTable, type ListedJobs } from "./JobsTable";
import { RunFacts } from "./RunFacts";
import { FAILED, isoTime, projectPath, type Config } from "./types";

export function Configuration({ params, query }: ViewProps) {
  const name = params["id"] ?? "";
  const config = useGet<Config>(projectPath(`training-job-configs/${segment(name)}`));
  const failed = useGet<ListedJobs>(projectPath("training-jobs"), { config_name: name, status: FAILED, sortBy: "create_time", order: "desc", per_page: 1 });
  const [dialog, setDialog] = useState<"" | "run" | "delete">("");
  const last = failed.data?.jobs[0];
  return (
    <>
      <p><a href={href("/configurations")}>Saved configurations</a></p>
      <h1><Text value={name} /></h1>
      <Loaded of={config}>
        {(found) => (
          <>
            <p>{found.config_desc && <><Text value={found.config_desc} />. </>}<span class="muted">Saved <Time at={isoTime(found.create_time)} />.</span></p>
            <div class="row">
              <button type="button" class="primary" onClick={() => setDialog("run")}>Run…</button>
              {last && <a class="button" href={href(`/user-jobs/${last.job_id}`, { version: last.version_id, show: "log" })}>Log of the last failed job</a>}
              <span class="grow" />
              <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete…</button>
            </div>
            <RunFacts settings={found} />
          </>
        )}
      </Loaded>
      <h2>Jobs</h2>
      <JobsTable config={name} page={Number(query.get("page") ?? 1)} />
      {dialog === "run" && <RunDialog name={name} onClose={() => setDialog("")} />}
      {dialog === "delete" && (
        <Dialog title="Delete this configuration?" onClose={() => setDialog("")}>
          <p><strong><Text value={name} /></strong> can't be run by its name any more. Its jobs stay, with the settings that they were started with; running ones go on.</p>
          <div class="row end">
            <button type="button" onClick={() => setDialog("")}>Cancel</button>
            <ActionButton kind="danger" onAction={async () => (await del(projectPath(`training-job-configs/${segment(name)}`)), go("/configurations"))}>Delete the configuration</ActionButton>
          </div>
        </Dialog>
      )}
    </>
  );
}

interface Created {
  job_id: number;
  version_id: number;
}

function RunDialog({ name, onClose }: { name: string; onClose: () => void }) {
  const [job, setJob] = useState(() => `${name.slice(0, 48)}-${new Date().toISOString().slice(0, 16).replace(/[-:]/g, "")}`);
  const [desc, setDesc] = useState("");
  async function start(): Promise<void> {
    const made = await post<Created>(projectPath("training-jobs"), { job_name: job.trim(), job_desc: desc, config: { config_name: name } });
    go(`/user-jobs/${made.job_id}`, { version: made.version_id });
  }
  return (
    <Dialog title="Run the configuration" onClose={onClose}>
      <Field label="Name of the job" hint="Letters, digits, '_' and '-', at most 64; each job has its own.">
        <input value={job} maxLength={64} spellcheck={false} onInput={(event) => setJob(event.currentTarget.value)} />
      </Field>
      <Field label="Description"><input value={desc} maxLength={256} onInput={(event) => setDesc(event.currentTarget.value)} /></Field>
      <div class="row end">
        <button type="button" onClick={onClose}>Cancel</button>
        <ActionButton kind="primary" disabled={!job.trim()} onAction={start}>Start the job</ActionButton>
      </div>
    </Dialog>
  );
}
