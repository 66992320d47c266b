/** A model's curves: one chart per metric, all by version or all by time. */
import { useMemo } from "preact/hooks";
import { go, segment } from "../../app/router";
import { Chart } from "../../components/Chart";
import { number } from "../../components/format";
import type { Drawn } from "./ChartSettings";
import { alarmsOf, alarmText, CURVES, secondsOf, seriesOf } from "./series";
import type { Evaluation, ModelHistory } from "./types";

interface CurvesProps {
  modelId: string;
  history: ModelHistory;
  evaluations: readonly Evaluation[];
  drawn: Drawn;
}

export function Curves({ modelId, history, evaluations, drawn }: CurvesProps) {
  const points = history.data;
  const x = useMemo(() => points.map((point) => (drawn.byTime ? secondsOf(point) : point.step)), [points, drawn.byTime]);
  const charts = useMemo(
    () => CURVES.map((curve) => ({ curve, series: seriesOf(curve, points, { smoothing: drawn.smoothing, log: drawn.log, evaluations }) })),
    [points, evaluations, drawn.smoothing, drawn.log],
  );
  const missing = charts.filter(({ series }) => series.length === 0).map(({ curve }) => curve.title);
  const isThinned = points.some((point) => point.num_versions > 1);
  return (
    <>
      {isThinned && (
        <p class="muted">
          Each point stands for up to {Math.max(...points.map((point) => point.num_versions))} versions; the band reaches from their least to their largest value.
        </p>
      )}
      <div class="curves">
        {charts.filter(({ series }) => series.length > 0).map(({ curve, series }) => (
          <div key={curve.key} class="card">
            <Chart
              title={curve.key === "reward" ? "Reward per version, with the middle 80 % of trajectories" : curve.title}
              x={x}
              xLabel={drawn.byTime ? "time" : "version"}
              time={drawn.byTime}
              log={drawn.log}
              series={series}
              alarms={alarmsOf(curve, history.limits)}
              format={curve.format ?? ((value) => number(value))}
              height={curve.key === "reward" ? 280 : 190}
              sync={`model-${modelId}`}
              onPick={(index) => {
                const picked = points[index];
                if (picked) go(`/models/${segment(modelId)}/groups`, { step: picked.step });
              }}
            />
            {alarmText(curve, history.limits) && <p class="muted small">{alarmText(curve, history.limits)}</p>}
          </div>
        ))}
      </div>
      {missing.length > 0 && <p class="muted">No version of this range has: {missing.join(", ").toLowerCase()}.</p>}
    </>
  );
}
