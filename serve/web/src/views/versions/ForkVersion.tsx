/** A new model that begins with a version of this one. */
import { useState } from "preact/hooks";
import { post } from "../../app/api";
import { go, segment } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Dialog } from "../../components/Dialog";
import { Field } from "../../components/Field";
import type { Model } from "../models/types";
import type { TreeVersion } from "./types";

export function ForkVersion({ model, version, onClose }: { model: Model; version: TreeVersion; onClose: () => void }) {
  const [project, setProject] = useState(model.project);
  const [name, setName] = useState(`${model.name}-fork`);
  const [optimizer, setOptimizer] = useState(version.has_optimizer);
  async function fork(): Promise<void> {
    const from = { model: model.id, step: version.step, optimizer };
    const made = await post<Model>("v1/preview/models", { project: project.trim(), name: name.trim(), base_model: model.base_model, from });
    go(`/models/${segment(made.id)}/versions`);
  }
  return (
    <Dialog title={`Fork from version ${version.step}`} onClose={onClose}>
      <p>The new model has the same base model and LoRA settings. It shares this version's files, and each then trains on by itself.</p>
      <Field label="Project"><input value={project} maxLength={128} spellcheck={false} onInput={(event) => setProject(event.currentTarget.value)} /></Field>
      <Field label="Name"><input value={name} maxLength={128} spellcheck={false} onInput={(event) => setName(event.currentTarget.value)} /></Field>
      {version.has_optimizer && (
        <p><label><input type="checkbox" checked={optimizer} onChange={(event) => setOptimizer(event.currentTarget.checked)} /> Continue with its optimizer state</label></p>
      )}
      <div class="row end">
        <button type="button" onClick={onClose}>Cancel</button>
        <ActionButton kind="primary" disabled={!project.trim() || !name.trim()} onAction={fork}>Fork</ActionButton>
      </div>
    </Dialog>
  );
}
