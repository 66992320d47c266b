/** The page: a sign-in form, or the views. */
import { render } from "preact";
import { Layout } from "./app/Layout";
import { SignIn } from "./app/SignIn";
import { session } from "./app/session";

function Page() {
  return session.value === null ? <SignIn /> : <Layout key={session.value.id} />;
}

const root = document.getElementById("page");
if (root) render(<Page />, root);
