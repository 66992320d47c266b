/** Fine-tuning jobs of OpenAI's API, and the files that they train on. */
import { useState } from "preact/hooks";
import { del } from "../../app/api";
import { usePages } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Badge } from "../../components/Badge";
import { Dialog } from "../../components/Dialog";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Table } from "../../components/Table";
import { Tabs } from "../../components/Tabs";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { bytes } from "../../components/format";
import { saveFile } from "../../components/saveFile";
import { isoTime, toneOf, type FineTuningJob, type UploadedFile } from "./types";

export function FineTuning({ query }: ViewProps) {
  const files = query.get("show") === "files";
  return (
    <>
      <h1>Fine-tuning</h1>
      <Tabs
        label="Jobs or files"
        tabs={[
          { label: "Jobs", href: href("/fine-tuning"), current: !files },
          { label: "Files", href: href("/fine-tuning", { show: "files" }), current: files },
        ]}
      />
      {files ? <Files /> : <Jobs />}
    </>
  );
}

function Jobs() {
  const jobs = usePages<FineTuningJob>("v1/fine_tuning/jobs");
  if (jobs.items.length === 0) {
    if (jobs.error) return <ErrorBox error={jobs.error} onRetry={jobs.reload} />;
    return jobs.loading ? <Loading /> : <Empty title="No fine-tuning jobs yet">Upload a file of rows and create one with OpenAI's client: <code>client.fine_tuning.jobs.create(...)</code>.</Empty>;
  }
  return (
    <>
      {jobs.error && <ErrorBox error={jobs.error} onRetry={jobs.reload} />}
      <Table
        label="Fine-tuning jobs"
        rows={jobs.items}
        rowKey={(job) => job.id}
        hasMore={jobs.hasMore}
        onEnd={jobs.more}
        columns={[
          { key: "id", label: "Job", cell: (job) => <a href={href(`/fine-tuning/${segment(job.id)}`)}>{job.id.slice(0, 14)}…</a> },
          { key: "status", label: "State", cell: (job) => <Badge tone={toneOf(job.status)}>{job.status.replace("_", " ")}</Badge> },
          { key: "method", label: "Method", wide: true, cell: (job) => job.method.type },
          { key: "model", label: "Starts from", wide: true, cell: (job) => <Text value={job.model} max={50} /> },
          { key: "made", label: "Made", wide: true, cell: (job) => (job.fine_tuned_model ? <Text value={job.fine_tuned_model} max={50} /> : "–") },
          { key: "created", label: "Created", cell: (job) => <Time at={isoTime(job.created_at)} /> },
        ]}
      />
    </>
  );
}

function Files() {
  const files = usePages<UploadedFile>("v1/files", { order: "desc" });
  const [deleting, setDeleting] = useState<UploadedFile | null>(null);
  if (files.items.length === 0) {
    if (files.error) return <ErrorBox error={files.error} onRetry={files.reload} />;
    return files.loading ? <Loading /> : <Empty title="No files yet">Upload one with OpenAI's client: <code>client.files.create(file=..., purpose="fine-tune")</code>.</Empty>;
  }
  return (
    <>
      {files.error && <ErrorBox error={files.error} onRetry={files.reload} />}
      <Table
        label="Files"
        rows={files.items}
        rowKey={(file) => file.id}
        hasMore={files.hasMore}
        onEnd={files.more}
        columns={[
          { key: "name", label: "File", cell: (file) => <Text value={file.filename} max={60} /> },
          { key: "size", label: "Size", align: "right", cell: (file) => bytes(file.bytes) },
          { key: "created", label: "Uploaded", wide: true, cell: (file) => <Time at={isoTime(file.created_at)} /> },
          { key: "expires", label: "Expires", wide: true, cell: (file) => (file.expires_at ? <Time at={isoTime(file.expires_at)} /> : "never") },
          {
            key: "actions",
            label: "",
            cell: (file) => (
              <>
                <ActionButton kind="quiet" label={`Download ${file.filename}`} onAction={() => saveFile(`/v1/files/${file.id}/content`)}>Download</ActionButton>
                <button type="button" class="quiet" aria-label={`Delete ${file.filename}`} onClick={() => setDeleting(file)}>Delete…</button>
              </>
            ),
          },
        ]}
      />
      {deleting && (
        <Dialog title="Delete this file?" onClose={() => setDeleting(null)}>
          <p><strong><Text value={deleting.filename} /></strong> can't be used for new jobs any more. Jobs that were created with it go on: their rows are kept until they end.</p>
          <div class="row end">
            <button type="button" onClick={() => setDeleting(null)}>Cancel</button>
            <ActionButton kind="danger" onAction={async () => {
              await del(`v1/files/${segment(deleting.id)}`);
              setDeleting(null);
              files.reload();
            }}>
              Delete the file
            </ActionButton>
          </div>
        </Dialog>
      )}
    </>
  );
}
