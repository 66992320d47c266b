/** All models of the entity: the rewards of their newest versions, what they wait for, and their last error. */
import { useState } from "preact/hooks";
import { useReloads } from "../../app/live";
import { usePages } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { may } from "../../app/session";
import { StateBadge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { SearchField } from "../../components/SearchField";
import { Sparkline } from "../../components/Sparkline";
import { Table, type Column } from "../../components/Table";
import { Text, plain } from "../../components/Text";
import { Time } from "../../components/Time";
import { number } from "../../components/format";
import { NewModelButton } from "../models/NewModel";

interface Model {
  id: string;
  project: string;
  name: string;
  base_model: string;
  created_at: string;
  step: number;
}

/** The rest is there for keys with role train. */
interface Overviewed extends Model {
  version_created_at: string | null;
  activity: "training" | "queued" | "idle";
  num_queued: number;
  metric: string | null;
  recent: [number, number | null][];
  last_error: { job_id: string; message: string } | null;
}

const MAX_COMPARED = 7; // as many as the palette has colours

export function Overview(props: ViewProps) {
  return may("train") ? <Models {...props} /> : <Names />;
}

function Models({ query }: ViewProps) {
  const search = query.get("search") ?? "";
  const models = usePages<Overviewed>("v1/preview/overview", { search: search || null }, 50);
  useReloads({ kinds: ["job", "version", "model"] }, models.reload);
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const toggle = (id: string): void =>
    setChosen((old) => (old.includes(id) ? old.filter((one) => one !== id) : [...old, id].slice(-MAX_COMPARED)));
  const isEmpty = !models.loading && !models.error && models.items.length === 0;
  return (
    <>
      <h1>Models</h1>
      <div class="row">
        <SearchField label="Search by project or name" value={search} onSearch={(value) => setQuery({ search: value })} />
        {chosen.length > 1 ? (
          <a class="button" href={href("/compare", { models: chosen.join(",") })}>Compare {chosen.length} models</a>
        ) : (
          <span class="muted only-wide">Tick models to compare their curves.</span>
        )}
        <span class="grow" />
        <NewModelButton />
      </div>
      {models.error && <ErrorBox error={models.error} onRetry={models.reload} />}
      {models.loading && models.items.length === 0 && <Loading />}
      {isEmpty && search && <Empty title="No model has this text in its project or name">Clear the search to see all.</Empty>}
      {isEmpty && !search && <NoModels />}
      {models.items.length > 0 && (
        <Table
          label="Models"
          rows={models.items}
          rowKey={(model) => model.id}
          rowHeight={42}
          hasMore={models.hasMore}
          onEnd={models.more}
          columns={columns(chosen, toggle)}
        />
      )}
    </>
  );
}

function columns(chosen: readonly string[], toggle: (id: string) => void): Column<Overviewed>[] {
  return [
    {
      key: "choose",
      label: <span class="sr-only">Compare</span>,
      width: "36px",
      wide: true,
      cell: (model) => (
        <input
          type="checkbox"
          aria-label={`Compare ${plain(nameOf(model))}`}
          checked={chosen.includes(model.id)}
          onChange={() => toggle(model.id)}
        />
      ),
    },
    { key: "name", label: "Model", cell: (model) => <ModelLink model={model} /> },
    { key: "reward", label: "Reward", width: "120px", cell: (model) => <Curve model={model} /> },
    { key: "value", label: "Newest", align: "right", wide: true, width: "90px", cell: (model) => number(model.recent.at(-1)?.[1], 3) },
    { key: "step", label: "Version", align: "right", width: "80px", cell: (model) => model.step },
    { key: "age", label: "Age", width: "110px", wide: true, cell: (model) => <Time at={model.version_created_at} /> },
    { key: "state", label: "State", width: "110px", cell: (model) => <Activity model={model} /> },
    { key: "error", label: "Last error", wide: true, cell: (model) => <LastError model={model} /> },
  ];
}

function nameOf(model: Model): string {
  return `${model.project}/${model.name}`;
}

function ModelLink({ model }: { model: Model }) {
  return <a href={href(`/models/${segment(model.id)}`)}><Text value={nameOf(model)} max={60} /></a>;
}

function Curve({ model }: { model: Overviewed }) {
  if (model.recent.length === 0) return <span class="muted">not trained</span>;
  const label = model.metric ?? "reward";
  return (
    <span class="curve" title={label}>
      <Sparkline label={label} values={model.recent.map(([, value]) => value)} width={100} />
      {label !== "reward" && <span class="muted only-wide">loss</span>}
    </span>
  );
}

function Activity({ model }: { model: Overviewed }) {
  const more = model.num_queued - (model.activity === "queued" ? 1 : 0);
  const others = more > 0 ? ` +${more}` : "";
  return (
    <a class="bare" href={href("/jobs", { model: model.id })} aria-label={`Jobs of ${plain(nameOf(model))}: ${model.activity}${others}`}>
      <StateBadge state={model.activity} />{others && <span class="muted">{others}</span>}
    </a>
  );
}

function LastError({ model }: { model: Overviewed }) {
  if (!model.last_error) return <span class="muted">–</span>;
  return <a class="failed" href={href(`/jobs/${segment(model.last_error.job_id)}`)}><Text value={model.last_error.message} max={90} /></a>;
}

function NoModels() {
  return <Empty title="This entity has no models yet">Register one and train it: <a href="#/start">Start</a> has the lines to copy.</Empty>;
}

/** For keys that may only sample. */
function Names() {
  const models = usePages<Model>("v1/preview/models", { order: "desc" });
  return (
    <>
      <h1>Models</h1>
      {models.error && <ErrorBox error={models.error} onRetry={models.reload} />}
      {models.loading && models.items.length === 0 && <Loading />}
      {!models.loading && !models.error && models.items.length === 0 && <NoModels />}
      {models.items.length > 0 && (
        <Table
          label="Models"
          rows={models.items}
          rowKey={(model) => model.id}
          hasMore={models.hasMore}
          onEnd={models.more}
          columns={[
            { key: "name", label: "Model", cell: (model) => <ModelLink model={model} /> },
            { key: "base", label: "Base model", wide: true, cell: (model) => <Text value={model.base_model} max={40} /> },
            { key: "step", label: "Version", align: "right", cell: (model) => model.step },
            { key: "created", label: "Registered", cell: (model) => <Time at={model.created_at} /> },
          ]}
        />
      )}
    </>
  );
}
