"""The page that the service shows at `/`: its sources (src/), its build (build.py), and the routes that serve it.

`python -m tandem.serve.web.build` builds it into dist/. README.md says how to add a view.
"""
