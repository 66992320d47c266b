/** Shows a resource, or that it is being loaded, or why it can't be. */
import type { ComponentChildren } from "preact";
import type { Resource } from "../app/resource";
import { ErrorBox } from "./ErrorBox";
import { Loading } from "./Loading";

export function Loaded<T>({ of, children }: { of: Resource<T>; children: (data: T) => ComponentChildren }) {
  return (
    <>
      {of.error && <ErrorBox error={of.error} onRetry={of.reload} />}
      {of.data !== null ? children(of.data) : of.loading && <Loading />}
    </>
  );
}
