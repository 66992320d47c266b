// Start Swagger UI on the service's own document. It is a file because the content security policy forbids inline script.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  presets: [window.SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null, // it would send the document to another site
});
