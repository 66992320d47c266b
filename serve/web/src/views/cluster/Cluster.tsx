/** Engines and learners of every base model, live. */
import { useRefresh } from "../../app/refresh";
import { usePages } from "../../app/resource";
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Text } from "../../components/Text";
import { EngineCards } from "./EngineCards";
import { LearnerCard } from "./LearnerCard";
import { Settings } from "./Settings";
import type { Engines, Learners } from "./types";

const REFRESH_S = 3;

export function Cluster() {
  const engines = usePages<Engines>("v1/preview/engines", {}, 20);
  const learners = usePages<Learners>("v1/preview/learners", {}, 20);
  useRefresh(engines, REFRESH_S);
  useRefresh(learners, REFRESH_S);
  const names = [...new Set([...engines.items, ...learners.items].map((base) => base.id))];
  const more = () => {
    engines.more();
    learners.more();
  };
  return (
    <>
      <h1>Engines and learners</h1>
      {engines.error && <ErrorBox error={engines.error} onRetry={engines.reload} />}
      {learners.error && <ErrorBox error={learners.error} onRetry={learners.reload} />}
      {!names.length && (engines.loading || learners.loading) && <Loading />}
      {!names.length && !engines.loading && !learners.loading && !engines.error && (
        <Empty title="The service has no base models">Add one under base_models in tandem.yaml.</Empty>
      )}
      <Alarms engines={engines.items} learners={learners.items} />
      {names.map((name) => (
        <BaseModel
          key={name}
          name={name}
          engines={engines.items.find((base) => base.id === name)}
          learners={learners.items.find((base) => base.id === name)}
        />
      ))}
      {(engines.hasMore || learners.hasMore) && <button type="button" onClick={more}>More base models</button>}
    </>
  );
}

interface Alarm {
  base: string;
  sentence: string;
}

/** Everything that is wrong, before the details. */
function Alarms({ engines, learners }: { engines: Engines[]; learners: Learners[] }) {
  const alarms: Alarm[] = [
    ...engines.flatMap((base) => [
      ...(base.fault ? [{ base: base.id, sentence: base.fault }] : []),
      ...base.replicas
        .filter((replica) => replica.condition === "unhealthy" || replica.condition === "not_answering")
        .map((replica) => ({ base: base.id, sentence: `Engine ${replica.id}: ${replica.fault ?? "It doesn't work."}` })),
    ]),
    ...learners.flatMap((base) => [
      ...(base.alarm ? [{ base: base.id, sentence: base.alarm }] : []),
      ...(base.state === "waiting" || base.state === "not_answering" ? [{ base: base.id, sentence: base.sentence }] : []),
    ]),
  ];
  if (!alarms.length) return null;
  return (
    <section class="note bad" aria-label="Alarms" role="status">
      <ul class="plain">
        {alarms.map((alarm) => (
          <li key={alarm.base + alarm.sentence}><strong><Text value={alarm.base} max={60} /></strong> <Text value={alarm.sentence} max={400} /></li>
        ))}
      </ul>
    </section>
  );
}

function BaseModel({ name, engines, learners }: { name: string; engines: Engines | undefined; learners: Learners | undefined }) {
  return (
    <section class="base-model">
      <h2>
        <Text value={name} max={80} />{" "}
        {engines && (
          <Badge tone={engines.num_running >= engines.num_wanted ? "good" : engines.num_running ? "warn" : "bad"}>
            {engines.num_running} of {engines.num_wanted} engines
          </Badge>
        )}
      </h2>
      {engines && (
        <>
          <h3>Engines</h3>
          {engines.replicas.length ? <EngineCards engines={engines} /> : <p class="muted">No engine has started yet.</p>}
        </>
      )}
      {learners && (
        <>
          <h3>Learners</h3>
          <LearnerCard learners={learners} />
        </>
      )}
      <Settings engines={engines} learners={learners} />
    </section>
  );
}
