/** The saved configurations of the project, and all jobs of the project. */
import { useGet } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { Empty } from "../../components/Empty";
import { Loaded } from "../../components/Loaded";
import { Table } from "../../components/Table";
import { Tabs } from "../../components/Tabs";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { JobsTable } from "./JobsTable";
import { Pager } from "./Pager";
import { isoTime, projectPath, type ListedConfig } from "./types";

const PER_PAGE = 100;

export function Configurations({ query }: ViewProps) {
  const jobs = query.get("show") === "jobs";
  return (
    <>
      <h1>Saved configurations</h1>
      <Tabs
        label="Configurations or jobs"
        tabs={[
          { label: "Configurations", href: href("/configurations"), current: !jobs },
          { label: "All jobs", href: href("/configurations", { show: "jobs" }), current: jobs },
        ]}
      />
      {jobs ? <JobsTable page={Number(query.get("page") ?? 1)} /> : <ConfigTable page={Number(query.get("page") ?? 1)} search={query.get("q") ?? ""} />}
    </>
  );
}

interface Listed {
  config_total_count: number;
  configs: ListedConfig[];
}

function ConfigTable({ page, search }: { page: number; search: string }) {
  const configs = useGet<Listed>(projectPath("training-job-configs"), { page, per_page: PER_PAGE, search_content: search });
  return (
    <>
      <div class="row">
        <input
          type="search"
          aria-label="Search configurations"
          placeholder="Part of a name or description"
          value={search}
          maxLength={64}
          onInput={(event) => setQuery({ q: event.currentTarget.value, page: null })}
        />
      </div>
      <Loaded of={configs}>
        {({ config_total_count: total, configs: rows }) =>
          rows.length === 0 ? (
            <Empty title={search ? "No configuration has that in its name or description" : "This project has no saved configurations yet"}>
              {!search && <>Save one with <code>POST /v1/PROJECT/training-job-configs</code>: code or a built-in algorithm, data, parameters and resources under a name.</>}
            </Empty>
          ) : (
            <>
              <Table
                label="Saved configurations"
                rows={rows}
                rowKey={(row) => row.config_name}
                columns={[
                  { key: "name", label: "Name", cell: (row) => <a href={href(`/configurations/${segment(row.config_name)}`)}><Text value={row.config_name} max={64} /></a> },
                  { key: "desc", label: "Description", wide: true, cell: (row) => <Text value={row.config_desc} max={80} /> },
                  { key: "engine", label: "Runs", cell: (row) => (row.engine_name ? <Text value={row.engine_name} max={40} /> : "built-in algorithm") },
                  { key: "created", label: "Saved", cell: (row) => <Time at={isoTime(row.create_time)} /> },
                ]}
              />
              <Pager page={page} total={total} perPage={PER_PAGE} onPage={(to) => setQuery({ page: to })} />
            </>
          )
        }
      </Loaded>
    </>
  );
}
