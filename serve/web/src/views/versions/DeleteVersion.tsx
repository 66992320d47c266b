/** The question before a version is deleted, with what follows from it. */
import { url, send } from "../../app/api";
import { segment } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { Dialog } from "../../components/Dialog";
import { Text } from "../../components/Text";
import { nameOf, type Model } from "../models/types";
import type { TreeVersion } from "./types";

interface DeleteProps {
  model: Model;
  version: TreeVersion;
  onClose: () => void;
  onDeleted: () => void;
}

export function DeleteVersion({ model, version, onClose, onDeleted }: DeleteProps) {
  const forks = version.forks.filter((fork) => !fork.deleted).length;
  async function remove(): Promise<void> {
    await send("DELETE", url(`v1/preview/models/${segment(model.id)}/checkpoints`), { steps: [version.step] });
    onDeleted();
  }
  return (
    <Dialog title={`Delete version ${version.step}?`} onClose={onClose}>
      <p>It can't be undone:</p>
      <ul>
        <li>Completions from <code><Text value={nameOf(model, version.step)} /></code> get 404 at once.</li>
        <li>Its adapter{version.has_optimizer && " and optimizer state"} are deleted{forks > 0 ? `, except that ${forks} forked model${forks > 1 ? "s keep" : " keeps"} the same files` : ""}. Jobs that use it already finish first.</li>
        <li>The number {version.step} is never used again; the tree keeps its place.</li>
        {version.is_newest && <li><strong>It is the newest version:</strong> the model's name then answers from the one before, and the next job starts there.</li>}
      </ul>
      {version.kept_at && <p class="note warn">This version is kept, so the service will refuse. Release it first.</p>}
      <div class="row end">
        <button type="button" onClick={onClose}>Cancel</button>
        <ActionButton kind="danger" disabled={version.kept_at !== null} onAction={remove}>Delete version {version.step}</ActionButton>
      </div>
    </Dialog>
  );
}
