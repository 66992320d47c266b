/** The versions of a model with their numbers, the newest first. */
import type { Pages } from "../../app/resource";
import { href, segment } from "../../app/router";
import { compact, duration, number } from "../../components/format";
import { type Column, Table } from "../../components/Table";
import { Time } from "../../components/Time";
import type { Point } from "./types";

function value(point: Point, ...names: string[]): number | null {
  for (const name of names) {
    const found = point.metrics[name];
    if (found) return found[1];
  }
  return null;
}

function shown(found: number | null, format: (value: number) => string = number) {
  return found === null ? <span class="muted">–</span> : format(found);
}

export function VersionsTable({ modelId, versions }: { modelId: string; versions: Pages<Point> }) {
  const columns: Column<Point>[] = [
    {
      key: "step",
      label: "Version",
      width: "90px",
      cell: (point) => <a href={href(`/models/${segment(modelId)}/groups`, { step: point.step })} aria-label={`Groups of version ${point.step}`}>{point.step}</a>,
    },
    { key: "reward", label: "Reward", align: "right", cell: (point) => shown(value(point, "reward")) },
    { key: "spread", label: "10 to 90 %", align: "right", wide: true, cell: (point) => spread(point) },
    { key: "loss", label: "Loss", align: "right", cell: (point) => shown(value(point, "loss/train", "sft/loss")) },
    { key: "entropy", label: "Entropy", align: "right", wide: true, cell: (point) => shown(value(point, "loss/entropy")) },
    { key: "tokens", label: "Trained tokens", align: "right", wide: true, cell: (point) => shown(value(point, "data/step_num_tokens_trained", "sft/num_trainable_tokens"), compact) },
    { key: "seconds", label: "Job", align: "right", wide: true, cell: (point) => shown(value(point, "job/seconds"), duration) },
    {
      key: "job",
      label: "Made by",
      cell: (point) => (point.job_id ? <a href={href(`/jobs/${segment(point.job_id)}`)}>{point.kind} job</a> : <span class="muted">no job</span>),
    },
    { key: "created", label: "Created", cell: (point) => <Time at={point.created_at} /> },
  ];
  return (
    <Table
      label="Versions"
      columns={columns}
      rows={versions.items}
      rowKey={(point) => point.id}
      hasMore={versions.hasMore}
      onEnd={versions.more}
      height={versions.items.length > 12 ? "480px" : undefined}
    />
  );
}

function spread(point: Point) {
  const [low, high] = [point.metrics["reward/quantile_10"], point.metrics["reward/quantile_90"]];
  return low && high ? `${number(low[1], 3)} … ${number(high[1], 3)}` : <span class="muted">–</span>;
}
