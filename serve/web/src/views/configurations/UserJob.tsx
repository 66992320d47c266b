/** One job of saved configurations: its runs, the state of one, and its log. */
import { useEffect } from "preact/hooks";
import { post } from "../../app/api";
import { useGet } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Empty } from "../../components/Empty";
import { Loaded } from "../../components/Loaded";
import { Tabs } from "../../components/Tabs";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { duration } from "../../components/format";
import { saveFile } from "../../components/saveFile";
import { Status } from "./JobsTable";
import { LogView } from "./LogView";
import { RunFacts } from "./RunFacts";
import { isOpen, isoTime, projectPath, type JobVersion } from "./types";

interface Versions {
  job_id: number;
  job_name: string;
  job_desc: string;
  version_count: number;
  versions: JobVersion[];
}

const REFRESH_MS = 3000;

export function UserJob({ params, query }: ViewProps) {
  const job = segment(params["id"] ?? "");
  const found = useGet<Versions>(projectPath(`training-jobs/${job}/versions`), { per_page: 100 });
  const open = found.data?.versions.some((version) => isOpen(version.status)) ?? false;
  useEffect(() => {
    if (!open) return;
    const timer = setInterval(found.reload, REFRESH_MS);
    return () => clearInterval(timer);
  }, [open, found.reload]);
  return (
    <>
      <p><a href={href("/configurations", { show: "jobs" })}>Jobs of saved configurations</a></p>
      <Loaded of={found}>
        {(data) => {
          const wanted = Number(query.get("version") ?? data.versions[0]?.version_id);
          const version = data.versions.find((one) => one.version_id === wanted);
          return (
            <>
              <h1><Text value={data.job_name} /></h1>
              {data.job_desc && <p><Text value={data.job_desc} /></p>}
              {version ? <Run job={data} version={version} query={query} reload={found.reload} /> : <Empty title="This run was deleted" />}
            </>
          );
        }}
      </Loaded>
    </>
  );
}

function Run({ job, version, query, reload }: { job: Versions; version: JobVersion; query: URLSearchParams; reload: () => void }) {
  const path = projectPath(`training-jobs/${job.job_id}/versions/${version.version_id}`);
  const log = query.get("show") === "log";
  const here = (show: string | null): string => href(`/user-jobs/${job.job_id}`, { version: version.version_id, show });
  return (
    <>
      <div class="row">
        <label>
          Run{" "}
          <select value={String(version.version_id)} onChange={(event) => setQuery({ version: event.currentTarget.value, file: null })}>
            {job.versions.map((one) => <option key={one.version_id} value={String(one.version_id)}>{one.version_name}</option>)}
          </select>
        </label>
        <Status status={version.status} />
        <span class="muted">
          created <Time at={isoTime(version.create_time)} />{version.start_time !== null && <>, {isOpen(version.status) ? "running for" : "ran for"} {duration(version.duration / 1000)}</>}
        </span>
        <span class="grow" />
        {isOpen(version.status) && <ActionButton kind="danger" onAction={async () => (await post(`${path}/stop`, undefined), reload())}>Stop</ActionButton>}
        {version.config_name && !isOpen(version.status) && (
          <ActionButton onAction={async () => {
            const made = await post<JobVersion>(projectPath(`training-jobs/${job.job_id}/versions`), { config: { config_name: version.config_name } });
            setQuery({ version: made.version_id });
            reload();
          }}>
            Run again
          </ActionButton>
        )}
      </div>
      {version.error_message_of_job && <p class={isOpen(version.status) ? "note" : "note bad"}><Text value={version.error_message_of_job} /></p>}
      <Tabs label="Parts of the run" tabs={[{ label: "Settings", href: here(null), current: !log }, { label: "Log", href: here("log"), current: log }]} />
      {log ? <Logs path={path} open={isOpen(version.status)} query={query} /> : (
        <>
          {version.config_name && <p>From the configuration <a href={href(`/configurations/${segment(version.config_name)}`)}><Text value={version.config_name} /></a>.</p>}
          <RunFacts settings={version} />
        </>
      )}
    </>
  );
}

function Logs({ path, open, query }: { path: string; open: boolean; query: URLSearchParams }) {
  const files = useGet<{ log_file_list: string[] }>(`${path}/log/file-names`);
  const isEmpty = files.data?.log_file_list.length === 0;
  useEffect(() => {
    if (!open || !isEmpty) return;
    const timer = setInterval(files.reload, REFRESH_MS);
    return () => clearInterval(timer);
  }, [open, isEmpty, files.reload]);
  return (
    <Loaded of={files}>
      {({ log_file_list: names }) => {
        const file = names.find((name) => name === query.get("file")) ?? names[0];
        if (!file) return <Empty title="No output yet">{open ? "It appears here as soon as the program writes some." : "The program wrote nothing."}</Empty>;
        return (
          <>
            <div class="row">
              {names.length > 1 && names.map((name) => <button key={name} type="button" aria-pressed={name === file} onClick={() => setQuery({ file: name })}><Text value={name} /></button>)}
              <span class="grow" />
              <ActionButton onAction={() => saveFile(`/${decodeURIComponent(path)}/log/files/${file}`)}>Download <Text value={file} /></ActionButton>
            </div>
            <LogView key={`${path} ${file}`} path={path} file={file} follow={open} line={query.has("line") ? Number(query.get("line")) : null} />
          </>
        );
      }}
    </Loaded>
  );
}
