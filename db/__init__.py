"""Everything SQL: how processes connect, the tables, and a folder for each capability. Knows no machine learning."""
