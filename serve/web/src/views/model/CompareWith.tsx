/** Chooses another model to overlay. */
import { useState } from "preact/hooks";
import { usePages } from "../../app/resource";
import { go } from "../../app/router";
import { plain } from "../../components/Text";
import type { Model } from "../models/types";

/** `chosen`: models that are overlaid already. */
export function CompareWith({ id, chosen = [id] }: { id: string; chosen?: readonly string[] }) {
  const [open, setOpen] = useState(false);
  return open ? <Choice chosen={chosen} /> : <button type="button" onClick={() => setOpen(true)}>Compare with…</button>;
}

function Choice({ chosen }: { chosen: readonly string[] }) {
  const models = usePages<Model>("v1/preview/models", { order: "desc" });
  return (
    <label>
      Compare with{" "}
      <select autofocus value="" onChange={(event) => event.currentTarget.value && go("/compare", { models: [...chosen, event.currentTarget.value].join(",") })}>
        <option value="">{models.loading ? "Loading…" : "Choose a model"}</option>
        {models.items.filter((model) => !chosen.includes(model.id)).map((model) => (
          <option key={model.id} value={model.id}>{plain(`${model.project}/${model.name}`)}</option>
        ))}
      </select>
      {models.hasMore && <button type="button" class="quiet" onClick={models.more}>More models</button>}
    </label>
  );
}
