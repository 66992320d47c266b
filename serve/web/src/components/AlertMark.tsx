/** A mark beside a model or a job that has open alerts; it leads to them. */
import type { Page } from "../app/api";
import { useGet } from "../app/resource";
import { href } from "../app/router";
import { may } from "../app/session";
import { Badge } from "./Badge";
import { plain } from "./Text";

interface Marked {
  id: string;
  title: string;
  severity: "critical" | "warning";
}

/** Give the id of a model or that of a job. Nothing is shown without an open alert. */
export function AlertMark(about: { model?: string; job?: string }) {
  return may("train") ? <Mark {...about} /> : null;
}

function Mark({ model, job }: { model?: string; job?: string }) {
  const about = job ? { job_id: job } : { model_id: model };
  const found = useGet<Page<Marked>>("v1/preview/alerts", { state: "open", limit: 5, ...about }).data?.data ?? [];
  const [first] = found;
  if (!first) return null;
  const critical = found.some((alert) => alert.severity === "critical");
  const title = found.map((alert) => plain(alert.title)).join("\n");
  return (
    <a class="alert-mark" href={href("/alerts", job ? { job } : { model })} title={title}>
      <Badge tone={critical ? "bad" : "warn"}>{found.length === 1 ? "alert" : `${found.length} alerts`}</Badge>
    </a>
  );
}
