/** Where the time of a job went: its phases as a bar, and as a table. It follows a job that runs. */
import { useState } from "preact/hooks";
import { useRefresh } from "../app/refresh";
import { useGet } from "../app/resource";
import { segment } from "../app/router";
import { compact, duration, percent } from "./format";
import { Loaded } from "./Loaded";
import { lookOf, money, type JobPhases, type PhaseTotal, type Stretch } from "./phases";
import { Table, type Column } from "./Table";
import { plain } from "./Text";

const REFRESH_S = 3;
const NEVER_S = 86_400;

/** `<Timeline jobId={job.id} />` loads and refreshes by itself. */
export function Timeline({ jobId }: { jobId: string }) {
  const phases = useGet<JobPhases>(`v1/preview/training-jobs/${segment(jobId)}/phases`);
  useRefresh(phases, phases.data?.ended_at ? NEVER_S : REFRESH_S);
  return <Loaded of={phases}>{(found) => <TimelineOf phases={found} />}</Loaded>;
}

export function TimelineOf({ phases }: { phases: JobPhases }) {
  const [marked, setMarked] = useState<string | null>(null);
  const learner = sum(phases.totals, "learner_seconds");
  return (
    <section class="timeline" aria-label="Where the time of the job went">
      <p>
        <strong>{duration(phases.seconds)}</strong> since it was accepted{phases.ended_at ? ", to its end" : ""};
        {" "}{percent(phases.seconds ? 1 - phases.idle_seconds / phases.seconds : 1)} accounted for.
        {learner > 0 && <> Learners worked <strong>{duration(learner)}</strong> for it.</>}
        {Object.keys(phases.costs).length > 0 && <> It cost <strong>{money(phases.costs)}</strong>.</>}
      </p>
      <StretchBar stretches={phases.data} seconds={phases.seconds} marked={marked} />
      {phases.has_more && <p class="muted">The bar shows the first {phases.data.length} stretches; the table has all.</p>}
      <PhaseTable totals={phases.totals} seconds={phases.seconds} marked={marked} onMark={setMarked} />
    </section>
  );
}

function StretchBar({ stretches, seconds, marked }: { stretches: Stretch[]; seconds: number; marked: string | null }) {
  const label = `A bar of ${stretches.length} stretches over ${duration(seconds)}; the table below has their sums.`;
  return (
    <div class={marked ? "stretch-bar has-mark" : "stretch-bar"} role="img" aria-label={label}>
      {stretches.map((stretch) => (
        <span
          key={stretch.id}
          class={`${lookOf(stretch.name).tone}${stretch.name === marked ? " marked" : ""}${stretch.is_running ? " running" : ""}`}
          style={{ flexGrow: Math.max(stretch.seconds, seconds / 2000) }}
          title={titleOf(stretch)}
        />
      ))}
    </div>
  );
}

function titleOf(stretch: Stretch): string {
  const look = lookOf(stretch.name);
  const attempt = stretch.attempt === null ? "" : `, attempt ${stretch.attempt}`;
  const reason = stretch.reason ? `\n${plain(stretch.reason)}` : "";
  return `${look.label}: ${duration(stretch.seconds)}${attempt}${stretch.is_running ? ", goes on" : ""}\n${look.about}${reason}`;
}

interface PhaseTableProps {
  totals: PhaseTotal[];
  seconds: number;
  marked: string | null;
  onMark: (name: string | null) => void;
}

function PhaseTable({ totals, seconds, marked, onMark }: PhaseTableProps) {
  const columns: Column<PhaseTotal>[] = [
    {
      key: "phase",
      label: "Phase",
      cell: (total) => {
        const look = lookOf(total.name);
        return (
          <button type="button" class="quiet phase-name" title={look.about} aria-pressed={marked === total.name} onClick={() => onMark(marked === total.name ? null : total.name)}>
            <span class={`swatch ${look.tone}`} aria-hidden="true" /> {look.label}
          </button>
        );
      },
    },
    { key: "seconds", label: "Time", align: "right", cell: (total) => duration(total.seconds) },
    { key: "share", label: "Share", align: "right", cell: (total) => percent(seconds ? total.seconds / seconds : 0) },
    { key: "learner", label: "Learner", align: "right", cell: (total) => used(total.learner_seconds) },
    { key: "engine", label: "Engine", align: "right", wide: true, cell: (total) => used(total.engine_seconds) },
    { key: "cpu", label: "CPU", align: "right", wide: true, cell: (total) => used(total.cpu_seconds) },
    { key: "tokens", label: "Tokens", align: "right", wide: true, cell: tokens },
  ];
  return <Table columns={columns} rows={totals} rowKey={(total) => total.name} label="Phases of the job" selected={marked} />;
}

function used(seconds: number): string {
  return seconds >= 0.005 ? duration(seconds) : "–";
}

function tokens(total: PhaseTotal): string {
  if (total.trained_tokens) return `${compact(total.trained_tokens)} trained`;
  const scored = total.scored_tokens + total.engine_scored_tokens;
  if (!scored) return "–";
  return `${compact(scored)} scored, ${percent(total.engine_scored_tokens / scored)} by engines`;
}

function sum(totals: PhaseTotal[], name: "learner_seconds"): number {
  return totals.reduce((whole, total) => whole + total[name], 0);
}
