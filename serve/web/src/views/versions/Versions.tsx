/** The versions of a model as a tree, and the one that is selected. */
import { useState } from "preact/hooks";
import { useReloads } from "../../app/live";
import { useGet } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Loaded } from "../../components/Loaded";
import { number } from "../../components/format";
import { saveFile } from "../../components/saveFile";
import { ModelHead } from "../models/ModelHead";
import { nameOf, type Model } from "../models/types";
import { Tree } from "./Tree";
import { VersionPanel } from "./VersionPanel";
import type { TreeVersion } from "./types";

export function Versions({ params, query }: ViewProps) {
  const model = useGet<Model>(`v1/preview/models/${segment(params["id"] ?? "")}`);
  const step = query.get("step");
  return <Loaded of={model}>{(found) => <VersionsOf model={found} step={step === null ? null : Number(step)} reload={model.reload} />}</Loaded>;
}

function VersionsOf({ model, step, reload }: { model: Model; step: number | null; reload: () => void }) {
  const [round, setRound] = useState(0);
  const [found, setFound] = useState<TreeVersion[]>([]);
  function changed(): void {
    setRound((old) => old + 1);
    reload();
  }
  useReloads({ kinds: ["version"], models: [model.id] }, changed);
  const best = found.find((version) => version.is_best);
  return (
    <>
      <ModelHead model={model} current="versions" />
      <div class="row version-actions">
        {best && <Shortcut model={model} version={best} label={`Best: version ${best.step}, reward ${number(best.metrics["reward"])}`} />}
        <GoTo newest={model.step} />
        <span class="grow" />
        <a class="button" href={href("/playground", { a: nameOf(model, best?.step), b: best && best.step !== model.step ? nameOf(model, model.step) : undefined })}>
          Chat with {best && best.step !== model.step ? "best and newest" : "it"}
        </a>
        <button type="button" onClick={changed}>Refresh</button>
      </div>
      <div class={step === null ? "versions" : "versions with-panel"}>
        <Tree key={model.id} round={round} model={model} selected={step} onSelect={(chosen) => setQuery({ step: chosen })} onLoaded={setFound} />
        {step !== null && <VersionPanel key={step} model={model} step={step} onChange={changed} onClose={() => setQuery({ step: null })} />}
      </div>
    </>
  );
}

/** Selects a version by its number, also one within a run. */
function GoTo({ newest }: { newest: number }) {
  const [typed, setTyped] = useState("");
  return (
    <form class="go-to" onSubmit={(event) => (event.preventDefault(), typed !== "" && setQuery({ step: Number(typed) }))}>
      <input type="number" aria-label="Go to version" placeholder="Version" min={0} max={newest} step={1} value={typed} onInput={(event) => setTyped(event.currentTarget.value)} />
      <button type="submit" disabled={typed === ""}>Go</button>
    </form>
  );
}

function Shortcut({ model, version, label }: { model: Model; version: TreeVersion; label: string }) {
  return (
    <>
      <button type="button" onClick={() => setQuery({ step: version.step })}>{label}</button>
      <ActionButton label={`Download its adapter, version ${version.step}`} onAction={() => saveFile(`/v1/preview/models/${model.id}/versions/${version.step}/adapter`)}>
        Download its adapter
      </ActionButton>
    </>
  );
}
