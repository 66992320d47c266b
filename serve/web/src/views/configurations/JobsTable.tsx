/** Jobs of the project, or of one configuration, the newest first. */
import { useGet } from "../../app/resource";
import { href, setQuery } from "../../app/router";
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { Loaded } from "../../components/Loaded";
import { Table, type Column } from "../../components/Table";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { duration } from "../../components/format";
import { Pager } from "./Pager";
import { isoTime, projectPath, statusOf, type ListedJob } from "./types";

const PER_PAGE = 100;

export interface ListedJobs {
  job_total_count: number;
  jobs: ListedJob[];
}

export function JobsTable({ page, config }: { page: number; config?: string }) {
  const jobs = useGet<ListedJobs>(projectPath("training-jobs"), { page, per_page: PER_PAGE, sortBy: "create_time", order: "desc", config_name: config });
  const columns: Column<ListedJob>[] = [
    { key: "name", label: "Job", cell: (job) => <a href={href(`/user-jobs/${job.job_id}`)}><Text value={job.job_name} max={64} /></a> },
    { key: "status", label: "State", cell: (job) => <Status status={job.status} /> },
    { key: "log", label: "Log", cell: (job) => <a href={href(`/user-jobs/${job.job_id}`, { version: job.version_id, show: "log" })}>Log</a> },
    { key: "versions", label: "Runs", align: "right", wide: true, cell: (job) => job.version_count },
    { key: "duration", label: "Took", align: "right", wide: true, cell: (job) => duration(job.duration / 1000) },
    { key: "created", label: "Created", cell: (job) => <Time at={isoTime(job.create_time)} /> },
  ];
  if (config === undefined) {
    columns.splice(2, 0, { key: "config", label: "Configuration", wide: true, cell: (job) => job.config_name && <a href={href(`/configurations/${job.config_name}`)}><Text value={job.config_name} max={40} /></a> });
  }
  return (
    <Loaded of={jobs}>
      {({ job_total_count: total, jobs: rows }) =>
        rows.length === 0 ? (
          <Empty title="No jobs yet">{config === undefined ? "Run a saved configuration: open it, and choose Run." : "Choose Run to start the first one."}</Empty>
        ) : (
          <>
            <Table label="Jobs" rows={rows} rowKey={(job) => String(job.job_id)} columns={columns} />
            <Pager page={page} total={total} perPage={PER_PAGE} onPage={(to) => setQuery({ page: to })} />
          </>
        )
      }
    </Loaded>
  );
}

export function Status({ status }: { status: number }) {
  const { label, tone } = statusOf(status);
  return <Badge tone={tone}>{label}</Badge>;
}
