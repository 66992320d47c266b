/** Several models overlaid: #/compare?models=ID,ID. */
import { useMemo } from "preact/hooks";
import { get } from "../../app/api";
import { useReloads } from "../../app/live";
import { useResource } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { Badge } from "../../components/Badge";
import { Chart } from "../../components/Chart";
import { Empty } from "../../components/Empty";
import { duration, number } from "../../components/format";
import { Loaded } from "../../components/Loaded";
import { plain, Text } from "../../components/Text";
import { ChartSettings, type Drawn, drawnBy } from "../model/ChartSettings";
import { CompareWith } from "../model/CompareWith";
import { alarmsOf, CURVES, smoothed } from "../model/series";
import type { ModelHistory } from "../model/types";
import type { Model } from "../models/types";
import { axisOf, onAxis, type Speeds, speedsOf } from "./overlay";

const MAX_MODELS = 7; // colours and dashes that are told apart
const POINTS = 400;

interface Compared {
  id: string;
  model: Model;
  history: ModelHistory;
}

export function Compare({ query }: ViewProps) {
  const ids = [...new Set((query.get("models") ?? "").split(",").filter(Boolean))].slice(0, MAX_MODELS);
  const loaded = useResource<Compared[]>(
    (signal) =>
      Promise.all(
        ids.map(async (id) => {
          const at = `v1/preview/models/${segment(id)}`;
          const [model, history] = await Promise.all([
            get<Model>(at, {}, { signal }),
            get<ModelHistory>(`${at}/history`, { points: POINTS }, { signal }),
          ]);
          return { id, model, history };
        }),
      ),
    [ids.join()],
  );
  useReloads({ kinds: ["version", "model"], models: ids }, loaded.reload);
  const drawn = drawnBy(query);
  return (
    <>
      <h1>Compare models</h1>
      {ids.length === 0 ? (
        <Empty title="No models are chosen">Open a model from the <a href="#/">overview</a> and choose “Compare with…”.</Empty>
      ) : (
        <Loaded of={loaded}>{(models) => <Overlay models={models} drawn={drawn} />}</Loaded>
      )}
    </>
  );
}

function nameOf({ model }: Compared): string {
  return `${model.project}/${model.name}`;
}

function Overlay({ models, drawn }: { models: Compared[]; drawn: Drawn }) {
  const speeds = useMemo(() => speedsOf(models), [models]);
  const axis = useMemo(() => axisOf(models, drawn.byTime), [models, drawn.byTime]);
  const charts = useMemo(() => CURVES.map((curve) => ({ curve, series: seriesOf(curve.lines.map((line) => line.metric)) })), [models, axis, drawn.smoothing, drawn.log]);

  function seriesOf(metrics: string[]) {
    return models.flatMap((one, index) => {
      const metric = metrics.find((name) => one.history.metrics.includes(name));
      if (metric === undefined) return [];
      const [low, values, high] = onAxis(axis, index, one.history, metric).map((found) =>
        drawn.log ? found.map((value) => (value !== null && value > 0 ? value : null)) : found,
      ) as [(number | null)[], (number | null)[], (number | null)[]];
      const isSpread = low.some((value, place) => value !== high[place]);
      return [{ label: nameOf(one), color: index, values: smoothed(values, drawn.smoothing), spanGaps: true, ...(isSpread ? { low, high } : {}) }];
    });
  }

  return (
    <>
      {speeds ? <SpeedTable speeds={speeds} models={models} /> : <Chosen models={models} />}
      <div class="row">{models.length < MAX_MODELS && <CompareWith id="" chosen={models.map((one) => one.id)} />}</div>
      <ChartSettings drawn={drawn} timeLabel="Hours since its first version" />
      <div class="curves">
        {charts.filter(({ series }) => series.length > 0).map(({ curve, series }) => (
          <div key={curve.key} class="card">
            <Chart
              title={curve.title}
              x={axis.x}
              xLabel={drawn.byTime ? "hours since the first version" : "version"}
              log={drawn.log}
              series={series}
              alarms={alarmsOf(curve, models[0]?.history.limits ?? {})}
              format={curve.format ?? ((value) => number(value))}
              height={curve.key === "reward" ? 300 : 190}
              sync="compare"
            />
          </div>
        ))}
      </div>
    </>
  );
}

function Chosen({ models }: { models: Compared[] }) {
  return <p>{models.map((one) => <a key={one.id} class="chosen" href={href(`/models/${segment(one.id)}`)}><Text value={nameOf(one)} /></a>)}</p>;
}

function SpeedTable({ speeds, models }: { speeds: Speeds; models: Compared[] }) {
  const names = new Map(models.map((one) => [one.id, nameOf(one)]));
  return (
    <section aria-labelledby="faster">
      <h2 id="faster">Which learns faster</h2>
      <p><Verdict speeds={speeds} names={names} /></p>
      <div class="table-box" tabIndex={0} role="region" aria-label="How fast the models learn">
        <table class="speeds">
          <thead>
            <tr>
              <th scope="col">Model</th><th scope="col" class="right">First reward</th><th scope="col" class="right">Latest reward</th>
              <th scope="col" class="right">Versions</th><th scope="col">Reward {number(speeds.level, 3)} first reached</th>
            </tr>
          </thead>
          <tbody>
            {speeds.models.map((model) => (
              <tr key={model.id}>
                <td><a href={href(`/models/${segment(model.id)}`)}><Text value={names.get(model.id) ?? model.id} max={60} /></a></td>
                <td class="right">{number(model.first, 3)}</td>
                <td class="right">{number(model.latest, 3)}</td>
                <td class="right">{model.versions}</td>
                <td>
                  {model.reached ? `version ${model.reached.step}, after ${duration(model.reached.hours * 3600)}` : <span class="muted">not yet</span>}{" "}
                  {speeds.byVersions === model.id && <Badge tone="good">fewest versions</Badge>}{" "}
                  {speeds.byTime === model.id && <Badge tone="good">least time</Badge>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Verdict({ speeds, names }: { speeds: Speeds; names: ReadonlyMap<string, string> }) {
  const [versions, time] = [speeds.byVersions, speeds.byTime].map((id) => (id === null ? null : plain(names.get(id) ?? id)));
  const level = `a reward of ${number(speeds.level, 3)}, halfway from the start to the best`;
  if (versions && versions === time) return <><strong>{versions}</strong> learns faster: it reached {level}, first, by versions and by time.</>;
  if (versions || time) {
    return <>{versions ? <><strong>{versions}</strong> needed the fewest versions</> : "None needed fewer versions"}, {time ? <><strong>{time}</strong> the least time</> : "none less time"}, to reach {level}.</>;
  }
  return <>No model was first to reach {level}.</>;
}
