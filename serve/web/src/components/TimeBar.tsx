/** Who waited for whom: how learner and rollouts of a model, or of all models on a base model, spent their time. */
import { useState } from "preact/hooks";
import { useRefresh } from "../app/refresh";
import { useResource } from "../app/resource";
import { get } from "../app/api";
import { duration, percent } from "./format";
import { Loaded } from "./Loaded";
import { Legend, StackedBars } from "./StackedBars";

interface Bin {
  began_at: string;
  ended_at: string;
  both_work: number;
  learner_works: number;
  rollouts_run: number;
  job_waits: number;
  idle: number;
}

interface Activity {
  begin: string;
  end: string;
  models: string[];
  total: Bin;
  bins: Bin[];
}

type State = "both_work" | "learner_works" | "rollouts_run" | "job_waits" | "idle";
const STATES: { state: State; label: string; tone: string }[] = [
  { state: "both_work", label: "Both work", tone: "part-3" },
  { state: "learner_works", label: "Learner works, rollouts wait", tone: "part-1" },
  { state: "rollouts_run", label: "Rollouts run, learner waits", tone: "part-wait" },
  { state: "job_waits", label: "A job waits or is prepared", tone: "part-wait-light" },
  { state: "idle", label: "Both idle", tone: "part-idle" },
];
const HOUR_S = 3600;
const RANGES = [
  { label: "15 min", seconds: 900 },
  { label: "1 h", seconds: HOUR_S },
  { label: "6 h", seconds: 6 * HOUR_S },
  { label: "1 d", seconds: 24 * HOUR_S },
  { label: "7 d", seconds: 168 * HOUR_S },
];
const BINS = 60;
const REFRESH_S = 10;

interface TimeBarProps {
  /** Of one model. */
  modelId?: string;
  /** Of all the entity's models on it; with neither, of all its models. */
  baseModel?: string;
  /** Seconds that are shown at first. */
  seconds?: number;
}

/** `<TimeBar modelId={model.id} />` loads and refreshes by itself. */
export function TimeBar({ modelId, baseModel, seconds = HOUR_S }: TimeBarProps) {
  const [range, setRange] = useState(seconds);
  const activity = useResource(
    (signal) => {
      const from = new Date(Date.now() - 1000 * range).toISOString();
      return get<Activity>("v1/preview/activity", { model_id: modelId, base_model: baseModel, from, bins: BINS }, { signal });
    },
    [modelId, baseModel, range],
  );
  useRefresh(activity, Math.max(REFRESH_S, range / BINS / 2));
  return (
    <section class="timebar" aria-label="Who waited for whom">
      <div class="timebar-head" role="group" aria-label="Stretch of time">
        {RANGES.map((one) => (
          <button key={one.seconds} type="button" aria-pressed={range === one.seconds} onClick={() => setRange(one.seconds)}>{one.label}</button>
        ))}
      </div>
      <Loaded of={activity}>{(found) => <Bars activity={found} />}</Loaded>
    </section>
  );
}

function Bars({ activity }: { activity: Activity }) {
  const { total, bins } = activity;
  const whole = STATES.reduce((sum, { state }) => sum + total[state], 0);
  const share = (state: State): string => percent(whole ? total[state] / whole : 0);
  const days = whole > 2 * 86_400;
  const bars = bins.map((bin) => ({ label: clock(bin.began_at, days), values: STATES.map(({ state }) => bin[state]) }));
  const width = whole / Math.max(1, bins.length);
  return (
    <>
      <p>{sentence(total)}</p>
      <StackedBars label={`Time of learner and rollouts. ${sentence(total)}`} parts={STATES} bars={bars} format={duration} full={width} height={90} />
      <Legend entries={STATES.map((one) => ({ ...one, value: `${share(one.state)} · ${duration(total[one.state])}` }))} />
    </>
  );
}

/** Answer the question in words. */
function sentence(total: Bin): string {
  const busy = total.both_work + total.learner_works + total.rollouts_run;
  if (busy === 0) return total.job_waits ? "A job waited; neither the learner nor rollouts worked." : "Nothing ran in this time.";
  const waits = total.rollouts_run / busy;
  const worked = total.learner_works / busy;
  const share = `the learner waited for rollouts ${percent(waits)}, rollouts for the learner ${percent(worked)}`;
  const whole = `Of the time in which either worked, ${share}, and both worked ${percent(total.both_work / busy)}.`;
  if (waits > 0.6) return `${whole} More engines, or rollouts that overlap with training, would help.`;
  return whole;
}

function clock(at: string, days: boolean): string {
  const date = new Date(at);
  return days
    ? date.toLocaleDateString("en", { weekday: "short", hour: "2-digit", hour12: false })
    : date.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });
}
