"""The wire types: request and response bodies. They know no database; `views` builds responses from rows."""
