/** A model: its curves, live, and the versions below. */
import { useReloads } from "../../app/live";
import { useGet, usePages } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loaded } from "../../components/Loaded";
import { TimeBar } from "../../components/TimeBar";
import { ModelHead } from "../models/ModelHead";
import type { Model as ModelData } from "../models/types";
import { ChartSettings, drawnBy } from "./ChartSettings";
import { ClientRun } from "./ClientRun";
import { CompareWith } from "./CompareWith";
import { Curves } from "./Curves";
import type { Evaluation, ModelHistory, Point } from "./types";
import { VersionsTable } from "./VersionsTable";

const POINTS = 400;

export function Model({ params, query }: ViewProps) {
  const id = params["id"] ?? "";
  const at = `v1/preview/models/${segment(id)}`;
  const model = useGet<ModelData>(at);
  const history = useGet<ModelHistory>(`${at}/history`, { points: POINTS });
  const evaluations = usePages<Evaluation>(`${at}/evaluations`, {}, 1000);
  const versions = usePages<Point>(`${at}/history`, { order: "desc" });
  useReloads({ kinds: ["version", "model"], models: [id] }, () => {
    for (const part of [model, history, evaluations, versions]) part.reload();
  });
  const drawn = drawnBy(query);
  return (
    <Loaded of={model}>
      {(found) => (
        <>
          <ModelHead model={found} current="curves" />
          <div class="row">
            <a class="button" href={href("/jobs", { model: id })}>Jobs</a>
            <CompareWith id={id} />
          </div>
          <ClientRun modelId={id} />
          <Loaded of={history}>
            {(curves) =>
              curves.data.length === 0 ? (
                <Empty title="This model has no versions yet">
                  The first training job makes version 1, or the first save of a client that trains it. <a href="#/start">Start</a> has the lines to copy; <a href={href("/jobs", { model: id })}>its jobs</a> say what they wait for.
                </Empty>
              ) : (
                <>
                  <ChartSettings drawn={drawn} />
                  <Curves modelId={id} history={curves} evaluations={evaluations.items} drawn={drawn} />
                  <h2>Who waited for whom</h2>
                  <TimeBar modelId={id} />
                  <h2>Versions</h2>
                  {versions.error && <ErrorBox error={versions.error} onRetry={versions.reload} />}
                  <VersionsTable modelId={id} versions={versions} />
                </>
              )
            }
          </Loaded>
        </>
      )}
    </Loaded>
  );
}
