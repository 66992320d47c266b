"""`tandem doctor`: check a machine and a configuration before anything is started. Every line says OK or what to do."""
