/** What a model is, and its deletion. */
import { useState } from "preact/hooks";
import { del, type Page } from "../../app/api";
import { useGet, usePages } from "../../app/resource";
import { go, href, segment, type ViewProps } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { CopyButton } from "../../components/CopyButton";
import { Dialog } from "../../components/Dialog";
import { Field } from "../../components/Field";
import { Loaded } from "../../components/Loaded";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { ModelHead } from "./ModelHead";
import { nameOf, type Model } from "./types";

export function Settings({ params }: ViewProps) {
  const model = useGet<Model>(`v1/preview/models/${segment(params["id"] ?? "")}`);
  return <Loaded of={model}>{(found) => <SettingsOf model={found} />}</Loaded>;
}

function SettingsOf({ model }: { model: Model }) {
  const [deleting, setDeleting] = useState(false);
  return (
    <>
      <ModelHead model={model} current="settings" />
      <dl class="facts">
        <dt>Name for completions</dt>
        <dd><code><Text value={nameOf(model)} /></code> <CopyButton text={nameOf(model)} of="the model's name" /></dd>
        <dt>Id</dt>
        <dd><code>{model.id}</code> <CopyButton text={model.id} of="the model's id" /></dd>
        <dt>Base model</dt>
        <dd><Text value={model.base_model} /></dd>
        <dt>Newest version</dt>
        <dd>{model.step}</dd>
        <dt>Registered</dt>
        <dd><Time at={model.created_at} /></dd>
        <LoraFacts model={model} />
        {model.origin && <Origin origin={model.origin} />}
      </dl>
      <p class="muted">Base model and LoRA settings belong to the versions, and names to the programs that use them, so none of them can be changed. To use another name, fork the model.</p>
      <h2>Delete</h2>
      <button type="button" class="danger" onClick={() => setDeleting(true)}>Delete this model…</button>
      {deleting && <DeleteModel model={model} onClose={() => setDeleting(false)} />}
    </>
  );
}

export function LoraFacts({ model }: { model: Model }) {
  const lora = model.lora;
  return (
    <>
      <dt>LoRA</dt>
      <dd>
        {lora ? <>rank {lora.r}, alpha {lora.alpha}, seed {lora.seed}, modules <Text value={lora.target_modules.join(", ")} /></> : "Its base model isn't configured here any more."}
      </dd>
    </>
  );
}

function Origin({ origin }: { origin: NonNullable<Model["origin"]> }) {
  return (
    <>
      <dt>Comes from</dt>
      <dd>
        {origin.kind === "fork" && origin.model_id ? (
          <>
            version {origin.step} of <a href={href(`/models/${segment(origin.model_id)}/versions`, { step: origin.step })}><Text value={origin.model ?? origin.model_id} /></a>
            {origin.optimizer ? ", with its optimizer state" : ", with a new optimizer"}
          </>
        ) : origin.run ? <>run <code>{origin.run}</code> of a client of the Tinker API</> : <>an adapter that was imported as version {origin.step}</>}
      </dd>
    </>
  );
}

interface OpenJob {
  id: string;
  state: string;
}

function DeleteModel({ model, onClose }: { model: Model; onClose: () => void }) {
  const [typed, setTyped] = useState("");
  const path = `${model.project}/${model.name}`;
  const jobs = usePages<OpenJob>("v1/preview/training-jobs", { model_id: model.id, order: "desc" }, 20);
  const open = jobs.items.filter((job) => job.state === "queued" || job.state === "running").length;
  const kept = useGet<Page<{ kept_at: string | null }>>(`v1/preview/models/${segment(model.id)}/checkpoints`, { order: "desc", limit: 100 });
  const keptCount = kept.data?.data.filter((version) => version.kept_at).length ?? 0;
  return (
    <Dialog title="Delete this model?" onClose={onClose}>
      <p>This deletes <strong><Text value={path} /></strong> with all its versions, the files of its jobs, and its logs. It can't be undone.</p>
      <ul>
        <li>Completions that ask for it get 404 at once, of any version.</li>
        <li>{open > 0 ? `${open} of its newest jobs are queued or running, and fail.` : "Its open jobs, if there are any, fail."}</li>
        <li>Models that were forked from it stay as they are.</li>
        <li>The name becomes free.</li>
      </ul>
      {keptCount > 0 && <p class="note warn">{keptCount} of its versions are kept, so the service will refuse. <a href={href(`/models/${segment(model.id)}/versions`)}>Release them</a> first.</p>}
      <Field label={`Type ${path} to confirm`}>
        <input value={typed} spellcheck={false} autocomplete="off" onInput={(event) => setTyped(event.currentTarget.value)} />
      </Field>
      <div class="row end">
        <button type="button" onClick={onClose}>Cancel</button>
        <ActionButton
          kind="danger"
          disabled={typed.trim() !== path}
          onAction={async () => {
            await del(`v1/preview/models/${segment(model.id)}`);
            go("/");
          }}
        >
          Delete the model
        </ActionButton>
      </div>
    </Dialog>
  );
}
