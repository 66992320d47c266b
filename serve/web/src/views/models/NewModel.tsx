/** A button that registers a model, with its dialog. */
import { useState } from "preact/hooks";
import { post } from "../../app/api";
import { useGet } from "../../app/resource";
import { go, segment } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Dialog } from "../../components/Dialog";
import { Field } from "../../components/Field";
import { Loaded } from "../../components/Loaded";
import type { Model } from "./types";

interface NamedModels {
  data: { id: string; owned_by: string }[];
}

export function NewModelButton() {
  const [open, setOpen] = useState(false);
  return (
    <>
      <button type="button" class="primary" onClick={() => setOpen(true)}>New model</button>
      {open && (
        <Dialog title="Register a model" onClose={() => setOpen(false)}>
          <NewModelForm onDone={(model) => go(`/models/${segment(model.id)}/settings`)} />
        </Dialog>
      )}
    </>
  );
}

function NewModelForm({ onDone }: { onDone: (model: Model) => void }) {
  const names = useGet<NamedModels>("v1/models");
  return <Loaded of={names}>{({ data }) => <Form bases={data.filter((one) => one.owned_by === "tandem").map((one) => one.id)} onDone={onDone} />}</Loaded>;
}

function Form({ bases, onDone }: { bases: string[]; onDone: (model: Model) => void }) {
  const [project, setProject] = useState("");
  const [name, setName] = useState("");
  const [base, setBase] = useState(bases[0] ?? "");
  const [rank, setRank] = useState("");
  const [alpha, setAlpha] = useState("");
  const [modules, setModules] = useState("");
  const [seed, setSeed] = useState("");

  async function register(): Promise<void> {
    const lora: Record<string, unknown> = {};
    if (rank) lora["r"] = Number(rank);
    if (alpha) lora["alpha"] = Number(alpha);
    if (seed) lora["seed"] = Number(seed);
    if (modules.trim()) lora["target_modules"] = modules.split(/[\s,]+/).filter(Boolean);
    const own = Object.keys(lora).length > 0 ? { lora } : {};
    onDone(await post<Model>("v1/preview/models", { project: project.trim(), name: name.trim(), base_model: base, ...own }));
  }

  const hint = "Letters, digits, '.', '_' and '-'.";
  return (
    <div>
      <Field label="Project" hint={hint}>
        <input name="project" value={project} maxLength={128} spellcheck={false} onInput={(event) => setProject(event.currentTarget.value)} />
      </Field>
      <Field label="Name" hint="Completions ask for entity/project/name.">
        <input name="name" value={name} maxLength={128} spellcheck={false} onInput={(event) => setName(event.currentTarget.value)} />
      </Field>
      <Field label="Base model" hint="Those that this service runs. It can't be changed later.">
        <select name="base" value={base} onChange={(event) => setBase(event.currentTarget.value)}>
          {bases.map((one) => <option key={one} value={one}>{one}</option>)}
        </select>
      </Field>
      <details>
        <summary>LoRA settings of its own</summary>
        <p class="muted">What is left empty is as the base model's configuration has it. The service refuses what is beyond its limits.</p>
        <div class="grid">
          <Field label="Rank r"><input type="number" min={1} value={rank} onInput={(event) => setRank(event.currentTarget.value)} /></Field>
          <Field label="Alpha"><input type="number" min={0} step="any" value={alpha} onInput={(event) => setAlpha(event.currentTarget.value)} /></Field>
          <Field label="Seed of version 0"><input type="number" value={seed} onInput={(event) => setSeed(event.currentTarget.value)} /></Field>
        </div>
        <Field label="Target modules" hint="Last parts of their names, such as q_proj v_proj.">
          <input value={modules} spellcheck={false} onInput={(event) => setModules(event.currentTarget.value)} />
        </Field>
      </details>
      <div class="row end">
        <ActionButton kind="primary" disabled={!project.trim() || !name.trim() || !base} onAction={register}>Register</ActionButton>
      </div>
    </div>
  );
}
