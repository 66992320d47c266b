// Bundle the page into dist/: index.html, and files whose names have a hash of their content, each also compressed.
// Python's `python -m tandem.serve.web.build` installs what this needs and runs it.
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const OUT = process.argv[2] ?? "dist";
const ASSETS = join(OUT, "assets");
const COMPRESSED = new Set([".js", ".css", ".svg"]);
const SWAGGER = "node_modules/swagger-ui-dist";

/** Every stylesheet below a folder, in a fixed order. */
function stylesheets(folder) {
  const found = readdirSync(folder, { recursive: true }).map(String).filter((name) => name.endsWith(".css"));
  return found.sort().map((name) => `./${join(folder, name)}`);
}

/** Write content as NAME-HASH.EXT and return that name. */
function hashed(name, content) {
  const digest = createHash("sha256").update(content).digest("hex").slice(0, 10);
  const extension = extname(name);
  const file = `${basename(name, extension)}-${digest}${extension}`;
  writeFileSync(join(ASSETS, file), content);
  return file;
}

async function bundle() {
  const styles = ["./node_modules/uplot/dist/uPlot.min.css", "./src/style/tokens.css", "./src/style/base.css"];
  for (const folder of ["src/app", "src/components", "src/views"]) styles.push(...stylesheets(folder));
  const shared = { bundle: true, minify: true, metafile: true, outdir: ASSETS, legalComments: "linked" };
  const scripts = await build({
    ...shared,
    entryPoints: ["src/main.tsx"],
    entryNames: "[name]-[hash]",
    format: "esm",
    splitting: false, // one file: a chain of small ones takes longer than the whole
    target: ["es2022"],
    jsx: "automatic",
    jsxImportSource: "preact",
  });
  const css = await build({
    ...shared,
    stdin: { contents: styles.map((file) => `@import "${file}";`).join("\n"), resolveDir: ".", loader: "css" },
    entryNames: "page-[hash]",
  });
  return { script: entry(scripts, "main"), style: entry(css, "page") };
}

function entry(result, name) {
  const found = Object.keys(result.metafile.outputs).map((file) => basename(file));
  return found.find((file) => file.startsWith(`${name}-`) && !file.endsWith(".txt"));
}

/** Fill in a page's template: {{name}} becomes the file of that name. */
function page(template, files) {
  const html = readFileSync(join("src", template), "utf8").replace(/{{(\w+)}}/g, (_, name) => files[name]);
  writeFileSync(join(OUT, template), html);
}

function compress() {
  for (const name of readdirSync(ASSETS)) {
    if (!COMPRESSED.has(extname(name))) continue;
    const file = join(ASSETS, name);
    const content = readFileSync(file);
    writeFileSync(`${file}.gz`, gzipSync(content, { level: 9 }));
    const quality = { params: { [constants.BROTLI_PARAM_QUALITY]: content.length > 500_000 ? 9 : 11 } };
    writeFileSync(`${file}.br`, brotliCompressSync(content, quality));
  }
}

rmSync(OUT, { recursive: true, force: true });
mkdirSync(ASSETS, { recursive: true });
const icon = hashed("icon.svg", readFileSync("src/style/icon.svg"));
page("index.html", { ...(await bundle()), icon });
page("docs.html", {
  icon,
  style: hashed("reference.css", readFileSync(join(SWAGGER, "swagger-ui.css"))),
  swagger: hashed("reference-ui.js", readFileSync(join(SWAGGER, "swagger-ui-bundle.js"))),
  script: hashed("reference.js", readFileSync("src/reference.js")),
});
cpSync(join(SWAGGER, "LICENSE"), join(ASSETS, "reference-ui.LICENSE.txt"));
compress();
