-- Whether a CALL in this database reaches the extension's procedures and nobody else's. The owner of a
-- database can make a schema of that name, procedures in it, operators, and a search_path: run this with
-- search_path set to nothing, before anything of the schema is called.
SELECT count(DISTINCT p.proname) FILTER (WHERE p.proname <> 'upload_manifest') = 4 AND bool_and(
       l.lanname = 'c' AND p.probin ~ '(^|/)pg_parallel_backup([.]so)?$'
       AND EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
                   WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
                     AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND e.extname = 'pg_parallel_backup')
       -- Nobody but a superuser can put anything there afterwards, or another schema in its place.
       AND o.rolsuper
       AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(n.nspacl) a LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee
                       WHERE a.privilege_type = 'CREATE' AND g.rolsuper IS NOT TRUE))
FROM pg_catalog.pg_proc p
     JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     JOIN pg_catalog.pg_roles o ON o.oid = n.nspowner
     JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE n.nspname = 'parallel_backup'
  -- Before 0.3.0 there is no upload_manifest.
  AND p.proname IN ('start_backup', 'send_file_list', 'send_files_content', 'stop_backup', 'upload_manifest');
