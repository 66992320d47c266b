/** Where the time of a job went, and what it cost. */
import { href, segment, type ViewProps } from "../../app/router";
import { Text } from "../../components/Text";
import { Timeline } from "../../components/Timeline";

export function JobTime({ params }: ViewProps) {
  const id = params["id"] ?? "";
  return (
    <>
      <h1>Where the time of a job went</h1>
      <p>
        Job <a href={href(`/jobs/${segment(id)}`)} class="mono"><Text value={id} max={60} /></a>
        {" · "}<a href={href("/usage", { by: "job" })}>Usage of all jobs</a>
      </p>
      <Timeline jobId={id} />
    </>
  );
}
